//! The kernel command line: what the devices and the way out need, then the spec's own words.

use std::fmt::Write;

use crate::memory::layout::{self, Range};
use crate::spec::SandboxSpec;

/// Words every guest gets.
///
/// `nokaslr`: the image is loaded, not relocated, and equal guests have equal pages. `panic=-1`: a
/// panic is reported at once instead of waiting for an operator. `reboot=k,t`: if the exit port is not
/// compiled in, the keyboard controller is next, a triple fault last. `swiotlb=noforce`: no bounce buffer
/// beside the I/O window, which costs a guest with memory above 4 GiB 64 MiB. `tsc=nowatchdog`: the host
/// looks after the TSC, and the guest's own watchdog wakes an idle guest twice a second.
const ALWAYS: &str = "nokaslr panic=-1 reboot=k swiotlb=noforce tsc=nowatchdog";

/// The whole line for a sandbox with `devices` virtio devices.
#[must_use]
pub fn build(spec: &SandboxSpec, window: Range, devices: u32) -> String {
    let mut line = String::from(ALWAYS);
    let mut word = |text: std::fmt::Arguments<'_>| {
        line.push(' ');
        line.write_fmt(text).expect("a String takes any text");
    };
    if spec.devices.console.is_some() {
        word(format_args!("console=ttyS0"));
    }
    word(format_args!(
        "rundlet.window={:#x},{:#x}",
        window.start, window.len
    ));
    word(format_args!("rundlet.exit={:#x}", layout::EXIT_PORT.start));
    for index in 0..devices {
        let base = layout::virtio_mmio(index).start;
        word(format_args!(
            "virtio_mmio.device=4K@{base:#x}:{}",
            layout::virtio_irq(index)
        ));
    }
    let own = spec.kernel.cmdline.trim();
    if !own.is_empty() {
        word(format_args!("{own}"));
    }
    line
}
