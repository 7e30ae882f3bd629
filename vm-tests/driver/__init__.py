"""The portable driver: boots the worker in QEMU and runs claims in it.

channel   one line asks, one line answers: commands over a virtio port
qemu      the worker's process: command line, accelerator, end of life
machine   what a claim sees, with the method names of the NixOS test driver
payload   the disk with the programs under test
claims    finding claims, reading their headers, running one
suite     workers and claims brought together; the report
"""
