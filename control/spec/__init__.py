"""What a VM is, before it lives (floor 1): frozen facts, checked when they are made."""

from control.spec.vm_spec import (
    DirectBoot,
    Disk,
    DiskBoot,
    IsoBoot,
    RawSpec,
    Share,
    Spec,
    VMSpec,
)

__all__ = ["DirectBoot", "Disk", "DiskBoot", "IsoBoot", "RawSpec", "Share", "Spec", "VMSpec"]
