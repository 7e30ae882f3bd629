//! The zygote, with clones that are no virtual machines but do as one of their labels says.
//!
//! Not in the usual harness: a zygote is a process with one thread, and there tests are threads. With
//! `--zygote N` this program is a zygote whose socket is descriptor N; otherwise it runs the tests.

#[cfg(test)]
mod claims;
#[cfg(test)]
mod double;
#[cfg(test)]
mod node;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--zygote", number] => double::zygote(number),
        ["--zygote-of-two-threads", number] => double::zygote_of_two_threads(number),
        _ => run(&arguments),
    }
}

/// Runs the tests whose names have one of the words of the command line in them. Options are for the
/// usual harness.
fn run(arguments: &[&str]) -> ExitCode {
    let words: Vec<_> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let mut failed = 0;
    for (name, test) in claims::ALL {
        if !words.is_empty() && !words.iter().any(|&&word| name.contains(word)) {
            continue;
        }
        // A panic has said on standard error what is wrong.
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += u8::from(!ok);
    }
    ExitCode::from(u8::from(failed > 0))
}
