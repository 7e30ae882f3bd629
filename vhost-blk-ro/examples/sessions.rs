//! What many clones cost: a daemon, a template's scratch with data in it, and sessions that all begin
//! at once, sit idle, write a little, and go.
//!
//! ```text
//! cargo build --release -p vhost-blk-ro --bins --examples
//! target/release/examples/sessions [SESSIONS [MIB [DIRECTORY]]]
//! ```
//!
//! SESSIONS (200) come in at the same time to a 1 GiB scratch disk whose template in DIRECTORY (the
//! system's place for temporary files) holds MIB (32) of data. Prints one JSON object. The daemon is
//! `vhost-blk-ro` beside this program. Memory of the kernel is the whole system's, so nothing else
//! should run.

#[path = "../tests/front_end/driver.rs"]
mod driver;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use driver::{Device, OK, Result, Setup};

const DISK: u64 = 1 << 30;
const BLOCK: u64 = 4096;
/// Blocks that each session writes, spread over the template's data.
const WRITES: u64 = 64;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, usual: u64| args.get(at).map_or(Ok(usual), |text| text.parse());
    let (sessions, mib) = (usize::try_from(number(0, 200)?)?, number(1, 32)?);
    let place = args.get(2).map_or_else(std::env::temp_dir, Into::into);
    let directory = tempfile::tempdir_in(place)?;
    make_template(&directory.path().join("template"), mib)?;
    let daemon = Daemon::start(directory.path())?;
    let socket = directory.path().join("scratch.sock");
    // The first one pays for what is loaded once.
    drop(Device::connect(&socket, &Setup::default())?);
    thread::sleep(Duration::from_millis(200));

    let before = daemon.usage()?;
    let start = Instant::now();
    let (mut devices, mut times) = connect_all(&socket, sessions)?;
    let all = start.elapsed();
    times.sort();
    thread::sleep(Duration::from_millis(500));
    let idle = daemon.usage()?;
    thread::sleep(Duration::from_secs(2));
    let later = daemon.usage()?;

    let start = Instant::now();
    for device in &mut devices {
        write_some(device, mib)?;
    }
    let writing = start.elapsed();
    let written = daemon.usage()?;
    drop(devices);
    thread::sleep(Duration::from_millis(500));
    let after = daemon.usage()?;

    let each = |from: u64, to: u64| to.saturating_sub(from) / sessions as u64;
    let micros = |time: Duration| time.as_micros();
    println!("{{");
    println!(r#"  "sessions": {sessions}, "template_mib": {mib},"#);
    println!(r#"  "start_all_us": {},"#, micros(all));
    println!(
        r#"  "start_us": {{"p50": {}, "p99": {}, "max": {}}},"#,
        micros(times[sessions / 2]),
        micros(times[sessions * 99 / 100]),
        micros(times[sessions - 1]),
    );
    println!(
        r#"  "daemon_cpu_us_per_start": {},"#,
        each(before.cpu, idle.cpu)
    );
    println!(
        r#"  "idle_per_session": {{"pss_bytes": {}, "kernel_bytes": {}, "descriptors": {:.2}, "threads": {:.2}}},"#,
        each(before.pss, idle.pss),
        each(before.kernel, idle.kernel),
        per(before.descriptors, idle.descriptors, sessions),
        per(before.threads, idle.threads, sessions),
    );
    println!(
        r#"  "idle_wakeups_in_2_s": {}, "idle_cpu_us_in_2_s": {},"#,
        later.switches.saturating_sub(idle.switches),
        later.cpu - idle.cpu
    );
    println!(
        r#"  "first_writes_of_4k": {{"us": {}, "daemon_cpu_us": {:.1}, "file_bytes": {}, "pss_bytes": {}}},"#,
        micros(writing) / (sessions as u128 * u128::from(WRITES)),
        per(later.cpu, written.cpu, sessions) / 64.0,
        each(before.files, written.files) / WRITES,
        each(before.pss, written.pss)
    );
    println!(
        r#"  "after": {{"pss_bytes": {}, "descriptors": {}, "threads": {}}}"#,
        after.pss.saturating_sub(before.pss),
        after.descriptors.saturating_sub(before.descriptors),
        after.threads.saturating_sub(before.threads),
    );
    println!("}}");
    Ok(())
}

fn per(from: u64, to: u64, sessions: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let (more, sessions) = (to.saturating_sub(from) as f64, sessions as f64);
    more / sessions
}

/// Data in stretches of 1 MiB, as a file system has after some files were written.
fn make_template(path: &Path, mib: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(DISK)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for part in 0..mib {
        let mut bytes = Vec::with_capacity(1 << 20);
        while bytes.len() < 1 << 20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            bytes.extend(state.to_le_bytes());
        }
        file.write_all_at(&bytes, stretch(part, mib))?;
    }
    file.sync_all()?;
    Ok(())
}

/// Where the template's data number `part` is.
fn stretch(part: u64, parts: u64) -> u64 {
    DISK / parts.max(1) * part / BLOCK * BLOCK
}

/// Everybody at once; returns how long each took until its first block was read.
fn connect_all(socket: &Path, sessions: usize) -> Result<(Vec<Device>, Vec<Duration>)> {
    let start = Barrier::new(sessions);
    let results: Vec<Result<(Device, Duration)>> = thread::scope(|scope| {
        let connect = || {
            start.wait();
            let begun = Instant::now();
            let mut device = Device::connect(socket, &Setup::default())?;
            device.read(0, 4096)?;
            Ok((device, begun.elapsed()))
        };
        let threads: Vec<_> = (0..sessions).map(|_| scope.spawn(connect)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|_| Err("a front end panicked".into())))
            .collect()
    });
    let results: Result<Vec<_>> = results.into_iter().collect();
    Ok(results?.into_iter().unzip())
}

fn write_some(device: &mut Device, mib: u64) -> Result<()> {
    for i in 0..WRITES {
        let at = stretch(i % mib.max(1), mib) + i / mib.max(1) * BLOCK;
        if device.write(at / 512, &[7; 4096])? != OK {
            return Err("a write failed".into());
        }
    }
    Ok(())
}

struct Daemon(Child);

/// What the daemon has, and the kernel for it.
struct Usage {
    pss: u64,
    /// Stacks, page tables and objects of the kernel, for both ends of all connections.
    kernel: u64,
    descriptors: u64,
    threads: u64,
    /// Times that a thread went to sleep or was put aside.
    switches: u64,
    /// CPU time, µs.
    cpu: u64,
    /// What its files take that have no name.
    files: u64,
}

impl Daemon {
    fn start(directory: &Path) -> Result<Self> {
        let examples = std::env::current_exe()?;
        let release = examples.parent().and_then(Path::parent);
        let program = release.ok_or("no directory")?.join("vhost-blk-ro");
        let at = |name: &str| directory.join(name).display().to_string();
        let config = format!(
            r#"{{"listeners": [{{"socket": "{}",
                 "disk": {{"scratch": {{"template": "{}", "directory": "{}", "resumes": true}}}}}}]}}"#,
            at("scratch.sock"),
            at("template"),
            directory.display(),
        );
        let mut child = Command::new(program)
            .args(["serve", "--config", "-"])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("no stdin")?;
        input.write_all(config.as_bytes())?;
        drop(input);
        let output = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(output).read_line(&mut String::new())?;
        Ok(Self(child))
    }

    fn usage(&self) -> Result<Usage> {
        let of = |name: &str| format!("/proc/{}/{name}", self.0.id());
        let status = fs::read_to_string(of("status"))?;
        let mut switches = 0;
        for task in fs::read_dir(of("task"))? {
            // Threads may end while they are counted.
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            for kind in ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"] {
                switches += number(&status, kind).unwrap_or(0);
            }
        }
        // The 14th and 15th field, with the 2nd in parentheses: ticks of 10 ms, ended threads included.
        let stat = fs::read_to_string(of("stat"))?;
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let cpu = ticks.sum::<std::result::Result<u64, _>>()? * 10_000;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let parts = ["KernelStack:", "PageTables:", "SUnreclaim:"];
        let kernel = parts.iter().map(|part| number(&meminfo, part));
        let kernel = kernel.sum::<Result<u64>>()?;
        let (mut descriptors, mut files) = (0, 0);
        for entry in fs::read_dir(of("fd"))? {
            let path = entry?.path();
            descriptors += 1;
            if fs::read_link(&path)?.to_string_lossy().contains("/#") {
                files += 512 * fs::metadata(&path)?.blocks();
            }
        }
        Ok(Usage {
            files,
            pss: 1024 * number(&fs::read_to_string(of("smaps_rollup"))?, "Pss:")?,
            kernel: 1024 * kernel,
            descriptors,
            threads: number(&status, "Threads:")?,
            switches,
            cpu,
        })
    }
}

/// The number after `field` in a file of `/proc`.
fn number(text: &str, field: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    Ok(word.ok_or_else(|| format!("no {field}"))?.parse()?)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It holds nothing but what is thrown away here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
