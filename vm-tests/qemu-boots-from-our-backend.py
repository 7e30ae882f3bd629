# QEMU, a vhost-user front end that we did not write, boots Linux from `vhost-blk-ro`: root on a read-only image, data
# on a throw-away layer, written and read back with checksums. Under real KVM, with the guest's RAM shared.
# nixos: left out, its guest is made of Debian's files
import json
import shlex

machine.succeed("rm -rf /tmp/peer && mkdir -p /tmp/peer/tree/bin /tmp/peer/layers")
machine.succeed("truncate -s 256M /tmp/peer/template && mkfs.ext4 -q -F /tmp/peer/template")

init = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for disk in vda vdb; do
    echo "disk $disk ro=$(cat /sys/block/$disk/ro) serial=$(cat /sys/block/$disk/serial) sectors=$(cat /sys/block/$disk/size)"
done
dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null && echo "ROOT WRITTEN"
mount -t erofs -o ro /dev/vda /root || poweroff -f
for tree in proc sys dev; do
    mount --move /$tree /root/$tree
done
exec switch_root /root /bin/bash -c "$(cat /check)"
"""
check = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t ext4 /dev/vdb /mnt && echo "mounted /mnt"
dd if=/dev/urandom of=/mnt/data bs=64k count=128 status=none
written=$(sha256sum </mnt/data)
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum </mnt/data)" = "$written" ] && echo "data read back"
dd if=/mnt/data of=/mnt/copy bs=4k oflag=direct iflag=direct status=none
[ "$(sha256sum </mnt/copy)" = "$written" ] && echo "direct copy equal"
rm /mnt/copy
fstrim /mnt && echo "trimmed"
sha256sum /usr/bin/python3.11 /usr/bin/bash /etc/debian_version
python3 -c 'print("python says", 6 * 7)'
umount /mnt && echo "unmounted"
python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""
machine.succeed(
    f"cd /tmp/peer/tree && printf %s {shlex.quote(init)} >init && chmod +x init && printf %s {shlex.quote(check)} >check && "
    "cp /bin/busybox bin/ && find . | busybox cpio -o -H newc >/tmp/peer/initrd.cpio"
)

config = {
    "listeners": [
        {"socket": "/tmp/peer/root.sock", "disk": {"image": {"path": "IMAGE"}}},
        {
            "socket": "/tmp/peer/data.sock",
            "disk": {"scratch": {"template": "/tmp/peer/template", "directory": "/tmp/peer/layers", "flush": "durable"}},
        },
    ]
}
text = shlex.quote(json.dumps(config))
machine.succeed(
    f"echo {text} | sed \"s|IMAGE|$(echo /var/lib/rundlet/images/*.erofs)|\" >/tmp/peer/config.json; "
    "(exec setsid vhost-blk-ro serve --config /tmp/peer/config.json) >/tmp/peer/events 2>/tmp/peer/log </dev/null & "
    "echo $! >/tmp/peer/pid"
)
machine.wait_until_succeeds("grep listening /tmp/peer/events", timeout=30)


def disk(name):
    return (
        f"-chardev socket,id={name},path=/tmp/peer/{name}.sock "
        f"-device vhost-user-blk,chardev={name} "
    )


def boot():
    # Exit status 1 is the guest's power-off: the debug port makes (value << 1) | 1 of what the kernel writes.
    return machine.execute(
        "timeout 120 qemu-system-x86_64 -M microvm,acpi=off,pit=off,pic=off,rtc=off,memory-backend=ram -accel kvm -cpu host -m 256 "
        "-object memory-backend-memfd,id=ram,size=256M,share=on -nodefaults -no-user-config -display none -no-reboot "
        "-serial stdio -device isa-debug-exit,iobase=0x600,iosize=4 "
        "-kernel /opt/rundlet/share/rundlet/vmlinux -initrd /tmp/peer/initrd.cpio "
        "-append 'console=ttyS0 quiet panic=-1 rundlet.exit=0x600' "
        + disk("root") + disk("data") + " 2>&1"
    )


def verify(shown):
    sums = machine.succeed(
        "cd /tmp/peer && tar -xf /opt/rundlet/test/debian.tar ./usr/bin/python3.11 ./etc/debian_version && "
        "tar -xf /opt/rundlet/test/debian.tar --wildcards './*bin/bash' && find . -name bash -exec mv {} usr/bin/bash \\; ; "
        "cd /tmp/peer && sha256sum usr/bin/python3.11 usr/bin/bash etc/debian_version"
    )
    for line in sums.splitlines():
        assert line.split()[0] in shown, (line, shown)
    for words in (
        "disk vda ro=1 serial=root",
        "disk vdb ro=0 serial=scratch sectors=524288",
        "mounted /mnt",
        "data read back",
        "direct copy equal",
        "trimmed",
        "python says 42",
        "unmounted",
    ):
        assert words in shown, (words, shown)
    assert "ROOT WRITTEN" not in shown, shown


with subtest("QEMU's guest runs from our root, and its data comes back as it was written"):
    status, shown = boot()
    assert status == 1, (status, shown)
    verify(shown)

with subtest("a second guest on the same daemon finds the data disk as the template made it"):
    status, shown = boot()
    assert status == 1, (status, shown)
    verify(shown)
    assert machine.succeed("ls /tmp/peer/layers").strip() == ""

with subtest("twin: a guest whose backend is gone does not start"):
    machine.succeed("kill $(cat /tmp/peer/pid)")
    machine.wait_until_fails("test -e /tmp/peer/root.sock", timeout=30)
    status, shown = boot()
    assert status not in (0, 1, 124) or "No such file" in shown, (status, shown)
    assert "python says" not in shown, shown

machine.succeed("rm -rf /tmp/peer")
