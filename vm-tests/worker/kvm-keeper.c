/* kvm-keeper: keeps three vCPUs open for as long as the worker lives.
 *
 * The kernel of the worker patches its own text whenever the number of vCPUs in one of these states goes from
 * none to one or back (static keys in arch/x86/kvm/lapic.c): without an in-kernel APIC, with an APIC that is
 * switched off in software, with an APIC that is switched off in its base register. Text patching on several
 * emulated processors at once ends in `Oops: int3` sooner or later. One vCPU held in each state keeps every
 * count above nought, so the patching happens here, once, before the first virtual machine of a test.
 *
 * A service of systemd's type "forking": the parent leaves once the child holds all three, or failed to.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define APIC_BASE_ENABLE (1ULL << 11)

static int checked(const char *what, int result)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static int open_vcpu(int kvm, int with_irqchip)
{
    int vm = checked("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0));

    if (with_irqchip)
        checked("KVM_CREATE_IRQCHIP", ioctl(vm, KVM_CREATE_IRQCHIP, 0));
    return checked("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
}

static void hold_vcpus(void)
{
    int kvm = checked("/dev/kvm", open("/dev/kvm", O_RDWR | O_CLOEXEC));
    struct kvm_sregs sregs;

    open_vcpu(kvm, 0);                /* no APIC at all */
    open_vcpu(kvm, 1);                /* switched off in software, as after reset */
    int disabled = open_vcpu(kvm, 1); /* switched off in the base register */
    checked("KVM_GET_SREGS", ioctl(disabled, KVM_GET_SREGS, &sregs));
    sregs.apic_base &= ~APIC_BASE_ENABLE;
    checked("KVM_SET_SREGS", ioctl(disabled, KVM_SET_SREGS, &sregs));
}

int main(void)
{
    int ready[2];
    char byte = 0;

    checked("pipe", pipe(ready));
    if (checked("fork", fork()) > 0) {
        close(ready[1]);
        return read(ready[0], &byte, 1) == 1 ? 0 : 1;
    }
    hold_vcpus();
    checked("write", (int)write(ready[1], &byte, 1));
    close(ready[0]);
    close(ready[1]);
    for (;;)
        pause();
}
