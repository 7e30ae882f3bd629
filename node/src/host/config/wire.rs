//! The configuration as it is written, and the way from there to what is valid.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CgroupConfig, JailConfig, LimitsConfig, MetricsConfig, SocketConfig, Wrong};
use crate::host::model::Limits;
use crate::{places, pool};

/// Slots of a pool where nothing is said, and with them living sandboxes.
const SLOTS: u32 = 64;
const SLOTS_RANGE: RangeInclusive<u32> = 1..=16_384;

/// The longest path of a unix socket, unix(7), without the zero at its end.
const SOCKET_PATH: usize = 107;

/// Numbers that are no user: 0 is root, the last one means none, chown(2).
const UIDS: RangeInclusive<u32> = 1..=u32::MAX - 1;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    run: Option<PathBuf>,
    store: Option<PathBuf>,
    socket: Socket,
    cgroup: Cgroup,
    limits: Most,
    jail: Option<Jail>,
    metrics: Metrics,
    log: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Socket {
    path: Option<PathBuf>,
    /// Octal digits: JSON has no such numbers.
    mode: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cgroup {
    root: Option<PathBuf>,
    slots: Option<u32>,
    wait_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Most {
    sandboxes: Option<u32>,
    memory_mib: Option<u64>,
    starts_at_once: Option<u32>,
    start_queue: Option<u32>,
    start_deadline_s: Option<u64>,
    first_command_s: Option<u64>,
    ended_records: Option<u32>,
    defaults: Limits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jail {
    first_uid: u32,
    uids: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Metrics {
    listen: Option<SocketAddr>,
}

impl TryFrom<Config> for super::Config {
    type Error = Wrong;

    fn try_from(wire: Config) -> Result<Self, Wrong> {
        let run = absolute("run", wire.run.unwrap_or_else(run))?;
        let store = absolute("store", wire.store.unwrap_or_else(places::store))?;
        let cgroup = cgroup(wire.cgroup)?;
        let limits = limits(wire.limits, cgroup.slots)?;
        let jail = wire.jail.map(|it| jail(&it, cgroup.slots)).transpose()?;
        Ok(Self {
            socket: socket(wire.socket, &run)?,
            run,
            store,
            cgroup,
            limits,
            jail,
            metrics: MetricsConfig {
                listen: wire.metrics.listen,
            },
            log: log(wire.log)?,
        })
    }
}

fn run() -> PathBuf {
    std::env::var_os(places::RUNTIME).map_or_else(|| "/run/rundlet".into(), PathBuf::from)
}

fn socket(wire: Socket, run: &Path) -> Result<SocketConfig, Wrong> {
    let path = wire.path.unwrap_or_else(|| run.join("api.sock"));
    let path = absolute("socket.path", path)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH {
        return wrong(
            "socket.path",
            format!("has {length} bytes, a socket's path at most {SOCKET_PATH}"),
        );
    }
    let mode = wire.mode.unwrap_or_else(|| "0660".into());
    let octal = u32::from_str_radix(&mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    let Some(mode) = octal.filter(|_| !mode.starts_with('+')) else {
        return wrong(
            "socket.mode",
            format!("{mode:?} is not octal digits up to \"0777\""),
        );
    };
    if wire.group.as_deref() == Some("") {
        return wrong("socket.group", "is empty; leave it out for root alone");
    }
    Ok(SocketConfig {
        path,
        mode,
        group: wire.group,
    })
}

fn cgroup(wire: Cgroup) -> Result<CgroupConfig, Wrong> {
    let root = wire.root.unwrap_or_else(|| "/sys/fs/cgroup/rundlet".into());
    Ok(CgroupConfig {
        root: absolute("cgroup.root", root)?,
        slots: within("cgroup.slots", wire.slots.unwrap_or(SLOTS), &SLOTS_RANGE)?,
        wait_ms: within("cgroup.wait_ms", wire.wait_ms.unwrap_or(0), &(0..=60_000))?,
    })
}

fn limits(wire: Most, slots: u32) -> Result<LimitsConfig, Wrong> {
    let sandboxes = wire.sandboxes.unwrap_or(slots);
    let sandboxes = within("limits.sandboxes", sandboxes, &SLOTS_RANGE)?;
    if sandboxes > slots {
        return wrong(
            "limits.sandboxes",
            format!("is {sandboxes}, but cgroup.slots is {slots}, and each sandbox takes a slot"),
        );
    }
    pool::check(&wire.defaults).map_err(|error| Wrong {
        field: format!("limits.defaults.{}", error.field),
        message: error.message,
    })?;
    let memory = |mib| within("limits.memory_mib", mib, &(64..=1 << 32));
    let number =
        |field, wish: Option<u32>, default, range| within(field, wish.unwrap_or(default), range);
    Ok(LimitsConfig {
        sandboxes,
        memory_mib: wire.memory_mib.map(memory).transpose()?,
        starts_at_once: number(
            "limits.starts_at_once",
            wire.starts_at_once,
            16,
            &(1..=1024),
        )?,
        start_queue: number("limits.start_queue", wire.start_queue, 1024, &(0..=65_536))?,
        start_deadline_s: within(
            "limits.start_deadline_s",
            wire.start_deadline_s.unwrap_or(30),
            &(1..=3600),
        )?,
        first_command_s: within(
            "limits.first_command_s",
            wire.first_command_s.unwrap_or(60),
            &(1..=3600),
        )?,
        ended_records: number(
            "limits.ended_records",
            wire.ended_records,
            1000,
            &(0..=100_000),
        )?,
        defaults: wire.defaults,
    })
}

fn jail(wire: &Jail, slots: u32) -> Result<JailConfig, Wrong> {
    let first_uid = within("jail.first_uid", wire.first_uid, &UIDS)?;
    if wire.uids < slots {
        return wrong(
            "jail.uids",
            format!(
                "is {}, but cgroup.slots is {slots}, and each sandbox takes one",
                wire.uids
            ),
        );
    }
    let last = first_uid.checked_add(wire.uids - 1);
    if !last.is_some_and(|last| UIDS.contains(&last)) {
        return wrong(
            "jail.uids",
            format!("{} from {first_uid} on go past {}", wire.uids, UIDS.end()),
        );
    }
    Ok(JailConfig {
        first_uid,
        uids: wire.uids,
    })
}

/// `level` or `module=level`, with commas between: a bare module would take a misspelt level for its name.
fn log(wish: Option<String>) -> Result<String, Wrong> {
    let filter = wish.unwrap_or_else(|| "info".into());
    let is_level = |word: &str| word.parse::<log::LevelFilter>().is_ok();
    let good = |item: &str| match item.split_once('=') {
        Some((module, level)) => !module.is_empty() && is_level(level),
        None => is_level(item),
    };
    match filter.split(',').find(|item| !good(item)) {
        None => Ok(filter),
        Some(item) => wrong(
            "log",
            format!(
                "{item:?} is neither a level (error, warn, info, debug, trace, off) nor MODULE=LEVEL"
            ),
        ),
    }
}

fn absolute(field: &str, path: PathBuf) -> Result<PathBuf, Wrong> {
    let dots = || path.components().any(|it| it.as_os_str() == "..");
    if !path.is_absolute() || dots() {
        return wrong(
            field,
            format!("{} is not an absolute path without \"..\"", path.display()),
        );
    }
    Ok(path)
}

fn within<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<T, Wrong> {
    if range.contains(&value) {
        return Ok(value);
    }
    let message = format!(
        "is {value}, {} to {} are possible",
        range.start(),
        range.end()
    );
    wrong(field, message)
}

fn wrong<T>(field: &str, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        field: field.to_owned(),
        message: message.into(),
    })
}
