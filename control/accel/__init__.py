"""Decides which accelerator a VM runs on, by running guest code on it (floor 2).

`choice.py` makes the decision, `kvm.py` puts KVM to the test, `rom.py` holds the firmware image the test runs,
`cache.py` remembers the answer. The launchers and `make doctor` call `choose_accelerator` and `probe_kvm`.
"""
