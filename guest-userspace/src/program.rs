//! The forked child on its way to becoming the program.
//!
//! Runs as an ordinary process of its own: it may block, allocate and die without the agent noticing
//! more than that.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rundlet_protocol::{ExecSpec, Failure, FailureKind};
use rustix::fs::{Gid, Mode, Uid, fchown};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, ioctl_tiocsctty, setrlimit, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::process::Stdio;
use crate::sys;
use crate::user::{Account, Database};

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files: a program that uses select(2) must not see numbers above 1024 unless it asks.
const SOFT_FILES: u64 = 1024;

/// Longest part of a request that an error message repeats, in characters.
const QUOTED: usize = 200;

/// Becomes the program, or says over `report` why not and ends.
pub(crate) fn become_program(spec: &ExecSpec, stdio: &Stdio, report: &OwnedFd) -> ! {
    let Err(failure) = attempt(spec, stdio, report);
    if let Ok(json) = serde_json::to_vec(&failure) {
        // Nobody is there to hear of an error. The message fits into the pipe.
        let _ = rustix::io::write(report, &json);
    }
    sys::exit(127)
}

fn attempt(spec: &ExecSpec, stdio: &Stdio, report: &OwnedFd) -> Result<Infallible, Failure> {
    take_streams(spec, stdio, report).map_err(|error| resources("streams", &error))?;
    sys::default_signals();
    umask(Mode::from_raw_mode(0o022));
    // Programs may be chosen by the out-of-memory killer, the agent not. No /proc, no change.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let files = getrlimit(Resource::Nofile).maximum;
    let soft = Some(SOFT_FILES.min(files.unwrap_or(SOFT_FILES)));
    let files = Rlimit {
        current: soft,
        maximum: files,
    };
    setrlimit(Resource::Nofile, files).map_err(|error| resources("open files", &error.into()))?;

    let account = Database::read(Path::new("/etc"))
        .find(spec.user.as_deref().unwrap_or("0"))
        .map_err(invalid)?;
    become_user(&account, spec)?;
    let cwd = spec.cwd.as_deref().unwrap_or("/");
    rustix::process::chdir(cwd)
        .map_err(|error| invalid(format!("cwd: cannot enter `{}`: {error}", quoted(cwd))))?;
    exec(spec, &account)
}

/// A session of its own, the three streams, and no other descriptor but the report.
fn take_streams(spec: &ExecSpec, stdio: &Stdio, report: &OwnedFd) -> io::Result<()> {
    setsid()?;
    if spec.tty.is_some() {
        ioctl_tiocsctty(&stdio.stdin)?;
    }
    dup2_stdin(&stdio.stdin)?;
    dup2_stdout(&stdio.stdout)?;
    dup2_stderr(&stdio.stderr)?;
    sys::close_others(report.as_fd())
}

fn become_user(account: &Account, spec: &ExecSpec) -> Result<(), Failure> {
    if spec.user.is_none() && !rustix::process::geteuid().is_root() {
        // An agent without privileges runs commands as itself.
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    // So that opening /dev/stdout, or the terminal, works for the user. /dev/null stays as it is.
    let streams = [
        (spec.tty.is_some() || spec.stdin).then(rustix::stdio::stdin),
        Some(rustix::stdio::stdout()),
        Some(rustix::stdio::stderr()),
    ];
    for fd in streams.into_iter().flatten() {
        let _ = fchown(fd, Some(uid), None);
    }
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)
        .and_then(|()| set_thread_gid(gid))
        .and_then(|()| set_thread_uid(uid))
        .map_err(|error| resources("cannot become the user", &error.into()))
}

fn exec(spec: &ExecSpec, account: &Account) -> Result<Infallible, Failure> {
    let Some(program) = spec.argv.first().filter(|program| !program.is_empty()) else {
        return Err(invalid("argv: names no program".to_owned()));
    };
    let argv = spec
        .argv
        .iter()
        .map(|argument| c_string("argv", argument.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let environment = environment(spec, account)?;
    if program.contains('/') {
        let path = c_string("argv", program.clone())?;
        return Err(exec_failure(
            program,
            sys::execve(&path, &argv, &environment),
        ));
    }
    let path = spec.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    search(program, path, &argv, &environment)
}

/// Tries the directories of `PATH` in turn; one that the user may not use does not end the search.
fn search(
    program: &str,
    path: &str,
    argv: &[CString],
    environment: &[CString],
) -> Result<Infallible, Failure> {
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{program}");
        let error = sys::execve(&c_string("env", candidate.clone())?, argv, environment);
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) if !exists(&candidate) => {}
            Some(Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP) => {}
            Some(Errno::ACCESS) => {
                denied.get_or_insert((candidate, error));
            }
            _ => return Err(exec_failure(&candidate, error)),
        }
    }
    Err(match denied {
        // A directory of PATH that cannot be searched hides nothing that is known to be there.
        Some((candidate, error)) if exists(&candidate) => exec_failure(&candidate, error),
        _ => Failure {
            kind: FailureKind::NotFound,
            message: format!(
                "program `{}` is in no directory of PATH ({})",
                quoted(program),
                quoted(path)
            ),
        },
    })
}

fn environment(spec: &ExecSpec, account: &Account) -> Result<Vec<CString>, Failure> {
    let mut defaults = vec![("PATH", DEFAULT_PATH), ("HOME", account.home.as_str())];
    if spec.tty.is_some() {
        defaults.push(("TERM", "xterm"));
    }
    defaults.retain(|(key, _)| !spec.env.contains_key(*key));
    let mut variables = Vec::with_capacity(spec.env.len() + defaults.len());
    for (key, value) in &spec.env {
        if key.is_empty() || key.contains('=') {
            return Err(invalid(format!(
                "env: `{}` cannot be a variable's name",
                quoted(key)
            )));
        }
        variables.push(c_string("env", format!("{key}={value}"))?);
    }
    for (key, value) in defaults {
        variables.push(c_string("env", format!("{key}={value}"))?);
    }
    Ok(variables)
}

/// Sorts an error of execve(2) by what the caller can do about it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "an error is given away, not lent"
)]
fn exec_failure(program: &str, error: io::Error) -> Failure {
    let name = quoted(program);
    let (kind, message) = match Errno::from_io_error(&error) {
        Some(Errno::NOENT) if exists(program) => (
            FailureKind::NotExecutable,
            format!("program `{name}` needs an interpreter or loader that the image does not have"),
        ),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP) => (
            FailureKind::NotFound,
            format!("program `{name}` does not exist"),
        ),
        Some(Errno::TOOBIG) => (
            FailureKind::Invalid,
            "argv and env: together too long for the kernel".to_owned(),
        ),
        Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE) => (
            FailureKind::Resources,
            format!("cannot run program `{name}`: {error}"),
        ),
        _ => (
            FailureKind::NotExecutable,
            format!("program `{name}` cannot be executed: {error}"),
        ),
    };
    Failure { kind, message }
}

fn exists(path: &str) -> bool {
    Path::new(path).metadata().is_ok()
}

fn c_string(field: &str, value: String) -> Result<CString, Failure> {
    CString::new(value).map_err(|_| invalid(format!("{field}: holds a zero byte")))
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn invalid(message: String) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message,
    }
}

fn resources(what: &str, error: &io::Error) -> Failure {
    Failure {
        kind: FailureKind::Resources,
        message: format!("{what}: {error}"),
    }
}
