/*
 * A firmware image that proves an accelerator by running on it: from the reset vector through real, protected and
 * long mode, then the instructions at which a broken KVM dies, then a loop that a KVM which interprets
 * its guest cannot finish in time. It ends QEMU with a distinctive exit code.
 *
 * Before each step it writes the step's letter to port 0x402 (isa-debugcon), so the last letter names the step that
 * killed it. control/accel/rom.py holds the assembled bytes and the meaning of the letters;
 * tests/unit/test_accel_rom.py assembles this file again and compares.
 *
 *   as --64 -o probe.o probe.S && ld -m elf_x86_64 -Ttext=0xf0000 -e 0xffff0 -o probe.elf probe.o
 *   objcopy -O binary -j .text probe.elf probe.bin
 *
 * QEMU maps the last 64 KiB below 4 GiB also at 0xf0000, where this runs. Only the end of the image
 * holds code, so only the last PROBE_SIZE bytes are kept.
 *
 * Segment descriptors carry the accessed bit already: the processor would set it, and this table is in ROM.
 */

        .set ROM_SIZE, 0x10000
        .set PROBE_SIZE, 0x400
        .set PROGRESS_PORT, 0x402       /* isa-debugcon,iobase=0x402 */
        .set EXIT_PORT, 0xf4            /* isa-debug-exit,iobase=0xf4: QEMU exits with value << 1 | 1 */
        .set EXIT_WORKED, 0x2a          /* QEMU exit code 85 */
        .set EXIT_EXCEPTION, 0x30       /* QEMU exit code 97 */
        .set EXIT_WRONG, 0x31           /* QEMU exit code 99 */
        .set LOOP_ROUNDS, 5000000       /* two instructions each */

        .set CODE32, 0x08
        .set DATA, 0x10
        .set CODE64, 0x18

        /* Low memory: page tables, interrupt table, a save area, a page to take away, the stack. */
        .set PML4, 0x10000
        .set PDPT, 0x11000
        .set PD, 0x12000
        .set PT, 0x13000
        .set IDT, 0x14000
        .set SAVE_AREA, 0x15000
        .set SPARE_PAGE, 0x20000
        .set SPARE_PTE, PT + (SPARE_PAGE >> 12) * 8
        .set STACK_TOP, 0x80000

        .macro step letter
        mov     $PROGRESS_PORT, %dx
        mov     $\letter, %al
        out     %al, %dx
        .endm

        .macro finish code
        mov     $\code, %eax
        out     %eax, $EXIT_PORT
1:      hlt
        jmp     1b
        .endm

        .text
image:
        .fill   ROM_SIZE - PROBE_SIZE, 1, 0xf4

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* CODE32 */
        .quad   0x00cf93000000ffff      /* DATA */
        .quad   0x00af9b000000ffff      /* CODE64 */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
idt_pointer:
        .word   256 * 16 - 1
        .quad   IDT

/* Real mode. A 32-bit iret here is what boot loaders do, and what an instruction emulator may lack. */
        .code16
start16:
        cli
        cld
        step    'R'
        xor     %ax, %ax
        mov     %ax, %ss
        mov     $0x7c00, %esp
        pushfl
        pushl   $0xf000
        pushl   $(after_iret16 - image)
        iretl
after_iret16:
        step    'P'
        lgdtl   %cs:(gdt_pointer - image)
        mov     %cr0, %eax
        and     $0x9fffffff, %eax       /* the caches are off after reset: CD, NW */
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $CODE32, $start32

/* Protected mode, 32 bits. */
        .code32
start32:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        mov     $STACK_TOP, %esp
        pushfl
        pushl   $CODE32
        pushl   $after_iret32
        iretl
after_iret32:
        step    'L'
        mov     $0x80000001, %eax
        cpuid
        bt      $29, %edx               /* long mode */
        jnc     wrong
        /* Identity map of the first 2 MiB in 4 KiB pages. */
        mov     $PML4, %edi
        xor     %eax, %eax
        mov     $(4 * 4096 / 4), %ecx
        rep stosl
        movl    $(PDPT + 3), PML4
        movl    $(PD + 3), PDPT
        movl    $(PT + 3), PD
        mov     $PT, %edi
        mov     $3, %eax
        mov     $512, %ecx
2:      mov     %eax, (%edi)
        add     $4096, %eax
        add     $8, %edi
        loop    2b
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       /* EFER */
        rdmsr
        bts     $8, %eax                /* LME */
        wrmsr
        mov     %cr0, %eax
        and     $~4, %eax               /* EM off */
        or      $0x80010002, %eax       /* PG, WP, MP */
        mov     %eax, %cr0
        ljmp    $CODE64, $start64

wrong:
        finish  EXIT_WRONG

/* Long mode. Every exception ends the probe, but for the two it provokes itself. */
        .code64
start64:
        mov     $IDT, %edi
        mov     $256, %ecx
3:      movq    $unexpected, %rax
        call    set_gate
        loop    3b
        mov     $(IDT + 3 * 16), %edi
        movq    $on_breakpoint, %rax
        call    set_gate
        mov     $(IDT + 14 * 16), %edi
        movq    $on_page_fault, %rax
        call    set_gate
        lidt    idt_pointer

        step    'C'
        xor     %eax, %eax
        cpuid
        test    %eax, %eax
        jz      wrong64
        mov     $1, %eax
        xor     %ecx, %ecx
        cpuid
        mov     %ecx, %r12d             /* feature bits, for the steps below */

        step    'F'
        mov     $SAVE_AREA, %edi
        movq    $0x0123456789abcdef, %rax
        movq    %rax, %xmm1
        fxsave64 (%rdi)
        pxor    %xmm1, %xmm1
        fxrstor64 (%rdi)
        movq    %xmm1, %rbx
        cmp     %rax, %rbx
        jne     wrong64

        bt      $26, %r12d              /* XSAVE */
        jnc     4f
        step    'X'
        mov     %cr4, %rax
        bts     $18, %rax               /* OSXSAVE */
        mov     %rax, %cr4
        xor     %ecx, %ecx
        xgetbv
        or      $3, %eax                /* x87 and SSE state */
        xsetbv
        mov     $SAVE_AREA, %edi
        xor     %eax, %eax
        mov     $(4096 / 8), %ecx
        rep stosq
        mov     $SAVE_AREA, %edi
        mov     $3, %eax
        xor     %edx, %edx
        movq    %rbx, %xmm1
        xsave64 (%rdi)
        pxor    %xmm1, %xmm1
        xrstor64 (%rdi)
        movq    %xmm1, %rcx
        cmp     %rbx, %rcx
        jne     wrong64
4:
        bt      $13, %r12d              /* CMPXCHG16B */
        jnc     5f
        step    'K'
        mov     $SAVE_AREA, %edi
        movq    $7, (%rdi)
        movq    $8, 8(%rdi)
        mov     $7, %eax
        mov     $8, %edx
        mov     $9, %ebx
        mov     $10, %ecx
        lock cmpxchg16b (%rdi)
        jnz     wrong64
        cmpq    $10, 8(%rdi)
        jne     wrong64
5:
        step    'B'
        xor     %r13d, %r13d
        int3
        cmp     $1, %r13d
        jne     wrong64

        /* Take a page away, touch it, and let the fault handler give it back. */
        step    'W'
        xor     %r14d, %r14d
        andb    $0xfe, SPARE_PTE
        invlpg  SPARE_PAGE
        movl    $0x5eed, SPARE_PAGE
        cmp     $1, %r14d
        jne     wrong64
        cmpl    $0x5eed, SPARE_PAGE
        jne     wrong64

        step    'S'
        mov     $LOOP_ROUNDS, %ecx
6:      dec     %ecx
        jnz     6b
        step    '.'
        finish  EXIT_WORKED

wrong64:
        finish  EXIT_WRONG

unexpected:
        finish  EXIT_EXCEPTION

on_breakpoint:
        inc     %r13d
        iretq

on_page_fault:
        mov     %cr2, %r15
        cmp     $SPARE_PAGE, %r15
        jne     unexpected
        inc     %r14d
        orb     $1, SPARE_PTE
        add     $8, %rsp                /* the error code */
        iretq

/* Write the interrupt gate for the handler in rax at rdi, and go on to the next entry. */
set_gate:
        mov     %ax, (%rdi)
        movw    $CODE64, 2(%rdi)
        movw    $0x8e00, 4(%rdi)        /* present, ring 0, interrupt gate */
        shr     $16, %rax
        mov     %rax, 6(%rdi)
        movw    $0, 14(%rdi)
        add     $16, %rdi
        ret

        .code16
        .org    ROM_SIZE - 16, 0xf4
reset:
        ljmp    $0xf000, $(start16 - image)
        .org    ROM_SIZE, 0xf4
