//! `rundlet-vmm zygote`: its clones are processes of their own, started as `rundlet-vmm clone`, since this
//! one has threads.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use crate::{Anything, Trouble, argument, say, unfit};

/// Serves until the node closes the socket.
pub(crate) fn serve(template: Option<&Path>) -> Anything {
    if let Some((reason, code, message)) = template.and_then(|it| unfit(it, None)) {
        say(&json!({"event": "exit", "reason": reason, "message": message}));
        std::process::exit(code);
    }
    let number = argument("--socket").ok_or("no --socket")?;
    // A safe way to a descriptor that was inherited.
    let number = number.to_str().ok_or("no number")?.parse()?;
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = Arc::new(pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty())?);
    send(&socket, &json!({"ready": {}}), None)?;
    loop {
        let (request, fds) = receive(&socket)?;
        let wanted = if template.is_some() { "clone" } else { "boot" };
        let order = &request[wanted];
        let Some(id) = order["id"].as_str() else {
            if request.is_null() {
                return Ok(());
            }
            return Err(format!("no zygote for {request}").into());
        };
        if Trouble::wanted() == Trouble::ZygoteRefuses {
            let refused = json!({"refused": {"id": id, "message": "double says no"}});
            send(&socket, &refused, None)?;
            continue;
        }
        let names = order["fds"].as_array().ok_or("no fds")?;
        let names = names.iter().filter_map(Value::as_str);
        let gifts: HashMap<&str, OwnedFd> = names.zip(fds).collect();
        let child = start(template, &order["spec"], gifts)?;
        watch(&socket, id, child)?;
    }
}

fn start(
    template: Option<&Path>,
    spec: &Value,
    mut gifts: HashMap<&str, OwnedFd>,
) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new(env::current_exe()?);
    command.arg0("rundlet-vmm");
    match template {
        Some(template) => command
            .args(["clone", "--spec", "-", "--template"])
            .arg(template),
        None => command.args(["boot", "--spec", "-"]),
    };
    let lifeline = gifts.remove("lifeline");
    if let Some(lifeline) = &lifeline {
        fcntl_setfd(lifeline, FdFlags::empty())?;
        command
            .arg("--lifeline")
            .arg(lifeline.as_raw_fd().to_string());
    }
    let mut gift = |name| gifts.remove(name).ok_or("a descriptor is missing");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(gift("stdout")?)
        .stderr(gift("stderr")?)
        .spawn()?;
    if let Some(cgroup) = gifts.remove("cgroup") {
        // The directory of a test, which looks like a cgroup.
        let procs = format!("/proc/self/fd/{}/cgroup.procs", cgroup.as_raw_fd());
        let mut procs = OpenOptions::new().append(true).create(true).open(procs)?;
        writeln!(procs, "{}", child.id())?;
    }
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    stdin.write_all(spec.to_string().as_bytes())?;
    Ok(child)
}

/// Announces a clone, and its end.
fn watch(socket: &Arc<OwnedFd>, id: &str, mut child: Child) -> Anything {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (pid, id) = (child.id(), id.to_owned());
    send(
        socket,
        &json!({"cloned": {"id": id, "pid": pid}}),
        Some(pidfd.as_fd()),
    )?;
    let socket = Arc::clone(socket);
    thread::spawn(move || {
        let status = child.wait().unwrap_or_default();
        let ended = match status.signal() {
            Some(signal) => json!({"id": id, "pid": pid, "signal": signal}),
            None => json!({"id": id, "pid": pid, "code": status.code()}),
        };
        // The node may have gone.
        let _ = send(&socket, &json!({"ended": ended}), None);
    });
    Ok(())
}

fn send(socket: &OwnedFd, answer: &Value, fd: Option<BorrowedFd<'_>>) -> Anything {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let json = answer.to_string();
    let bytes = [IoSlice::new(json.as_bytes())];
    sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Null at the end.
fn receive(socket: &OwnedFd) -> Result<(Value, Vec<OwnedFd>), Box<dyn Error>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; 65536];
    let mut into = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    buffer.truncate(received.bytes);
    let json = serde_json::from_slice(&buffer);
    Ok((
        if buffer.is_empty() {
            Value::Null
        } else {
            json?
        },
        fds,
    ))
}
