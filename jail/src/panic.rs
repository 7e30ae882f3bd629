//! Panics of a process that can open no files.

use std::io::{self, Write};
use std::panic::set_hook;

/// Has a panic say what it has to say and no more. A backtrace, if the environment asks for one, reads the
/// program's file and its map, and a process with a filter of its own would be killed for that, with
/// the wrong signal as its end.
pub fn without_backtrace() {
    set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // Nobody may be listening, and a panic here would be the end of everything.
        let _ = writeln!(io::stderr(), "thread {name}: {panic}");
    }));
}
