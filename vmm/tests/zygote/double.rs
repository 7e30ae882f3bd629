//! The zygote under test, and what its clones do instead of being restored.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rundlet_vmm::sandbox::Ties;
use rundlet_vmm::spec::{CloneSpec, ConsoleSink};
use rundlet_vmm::zygote::channel::Channel;
use rundlet_vmm::zygote::child::Settled;
use rundlet_vmm::zygote::order::Wanted;
use rundlet_vmm::zygote::{Makes, Served, Zygote};

pub(crate) fn zygote(number: &str) -> ExitCode {
    let channel = Channel::adopt(number.parse().unwrap()).unwrap();
    match Zygote::new(channel, Makes::Clones)
        .unwrap()
        .serve()
        .unwrap()
    {
        Served::Closed => ExitCode::SUCCESS,
        Served::Child(child) => {
            let timeline = child.timeline();
            let settled = child.settle().unwrap();
            act(&settled, &timeline.event().to_line())
        }
    }
}

/// One that breaks the first rule.
pub(crate) fn zygote_of_two_threads(number: &str) -> ExitCode {
    thread::spawn(|| thread::sleep(Duration::from_secs(3600)));
    zygote(number)
}

fn act(settled: &Settled, timeline: &str) -> ExitCode {
    let Settled { wanted, ties, .. } = settled;
    let Wanted::Clone(spec) = wanted else {
        panic!("no clone: {wanted:?}");
    };
    let act = spec.binding.labels().get("act").map_or("", String::as_str);
    match act.split_once(' ').unwrap_or((act, "")) {
        ("exit", code) => ExitCode::from(code.parse::<u8>().unwrap()),
        ("wait", _) => wait(ties),
        ("sleep", _) => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        ("panic", _) => panic!("as told"),
        ("threads", _) => threads(),
        ("cat", path) => {
            print!("{}", fs::read_to_string(path).unwrap());
            ExitCode::SUCCESS
        }
        ("say", _) => say(spec, timeline),
        ("descriptors", _) => {
            for (number, target) in descriptors("self") {
                println!("{number} {target}");
            }
            ExitCode::SUCCESS
        }
        other => panic!("{other:?}: no such act"),
    }
}

/// What a process has open: numbers, and what they are.
pub(crate) fn descriptors(process: &str) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let links = entries.map(|entry| {
        let path = entry.unwrap().path();
        let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(&path).unwrap();
        (number, target.display().to_string())
    });
    // Without the folder that is being read here.
    links
        .filter(|(_, target)| !target.ends_with("/fd"))
        .collect()
}

fn wait(ties: &Ties) -> ExitCode {
    let lifeline = ties.lifeline.as_ref().unwrap().try_clone().unwrap();
    fs::File::from(lifeline)
        .read_to_end(&mut Vec::new())
        .unwrap();
    ExitCode::SUCCESS
}

/// A clone may have threads, and they may take locks and memory.
fn threads() -> ExitCode {
    let work = || -> usize { (0..1000).map(|i| vec![i; i % 97].len()).sum() };
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(work)).collect();
    let sums: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
    ExitCode::from(u8::from(sums == 0))
}

fn say(spec: &CloneSpec, timeline: &str) -> ExitCode {
    println!("{timeline}");
    eprintln!("on standard error");
    let Some(ConsoleSink::Fd(number)) = spec.console.as_ref().map(|console| &console.sink) else {
        panic!("no console: {spec:?}");
    };
    let console = rundlet_vmm::lifeline::inherited(*number).unwrap();
    fs::File::from(console)
        .write_all(b"on the console")
        .unwrap();
    ExitCode::SUCCESS
}
