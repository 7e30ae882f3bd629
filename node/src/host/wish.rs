//! A wish for a sandbox that can be carried out: everything checked that can be known without looking at the
//! host. Each refusal names its field.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::model::{CreateSandbox, Limits, Source};
use super::{HostError, check};
use crate::image::ImageName;
use crate::sandbox::spec::{MEMORY_MIB, VCPUS};
use crate::scratch;
use crate::template::TemplateName;

const DEFAULT_MEMORY_MIB: u32 = 256;
const DEFAULT_VCPUS: u8 = 1;
const DEFAULT_SCRATCH_MIB: u64 = 1024;

/// What a VMM needs besides the guest's memory, MiB.
const OVERHEAD_MIB: u32 = 16;

const MAX_LABELS: usize = 32;
const MAX_LABEL_NAME: usize = 63;
const MAX_LABEL_VALUE: usize = 255;
const MAX_ENV: usize = 256;
/// Bytes of all names and values.
const MAX_ENV_BYTES: usize = 64 * 1024;
/// A year.
const TIMEOUT_S: RangeInclusive<u64> = 1..=366 * 24 * 60 * 60;
const MAX_KEY: usize = 255;

/// What a sandbox is to be made of, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Image(ImageName),
    Template(TemplateName),
}

/// The size of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
    pub(super) scratch_mib: u64,
}

/// Reads the name of the source.
pub(super) fn named(wish: &CreateSandbox) -> Result<Named, HostError> {
    match &wish.source {
        Source::Image(name) => match name.parse() {
            Ok(name) => Ok(Named::Image(name)),
            Err(error) => Err(HostError::invalid("source.image", error.to_string())),
        },
        Source::Template(name) => match name.parse() {
            Ok(name) => Ok(Named::Template(name)),
            Err(error) => Err(HostError::invalid("source.template", error.to_string())),
        },
    }
}

/// Checks all that does not depend on the source.
pub(super) fn check_wish(wish: &CreateSandbox) -> Result<(), HostError> {
    for (name, value) in &wish.labels {
        check_label(name, value)?;
    }
    if wish.labels.len() > MAX_LABELS {
        let count = wish.labels.len();
        let message = format!("has {count} labels, at most {MAX_LABELS} are possible");
        return Err(HostError::invalid("labels", message));
    }
    check_env(&wish.env)?;
    if let Some(seconds) = wish.timeout_s {
        within("timeout_s", seconds, &TIMEOUT_S)?;
    }
    check(&wish.limits)
        .map_err(|error| HostError::invalid(format!("limits.{}", error.field), error.message))
}

/// The size of a machine that boots.
pub(super) fn boot_size(wish: &CreateSandbox) -> Result<Size, HostError> {
    let size = Size {
        memory_mib: wish.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
        vcpus: wish.vcpus.unwrap_or(DEFAULT_VCPUS),
        scratch_mib: wish.scratch_mib.unwrap_or(DEFAULT_SCRATCH_MIB),
    };
    within("memory_mib", size.memory_mib, &MEMORY_MIB)?;
    within("vcpus", size.vcpus, &VCPUS)?;
    within("scratch_mib", size.scratch_mib, &scratch::SIZES_MIB)?;
    Ok(size)
}

/// Refuses a clone of another size than its template's.
pub(super) fn check_clone(wish: &CreateSandbox, template: Size) -> Result<(), HostError> {
    let same = |field: &str, wanted: Option<u64>, has: u64| match wanted {
        Some(wanted) if wanted != has => Err(HostError::invalid(
            field,
            format!("is {wanted}, and a clone has what its template has: {has}; leave it out"),
        )),
        _ => Ok(()),
    };
    same(
        "memory_mib",
        wish.memory_mib.map(u64::from),
        template.memory_mib.into(),
    )?;
    same("vcpus", wish.vcpus.map(u64::from), template.vcpus.into())?;
    same("scratch_mib", wish.scratch_mib, template.scratch_mib)
}

/// The limits of a sandbox: those wished for, and else those of the node.
pub(super) fn limits(
    wish: &Limits,
    defaults: &Limits,
    memory_mib: u32,
) -> Result<Limits, HostError> {
    let least = memory_mib.saturating_add(OVERHEAD_MIB);
    if let Some(limit) = wish.memory_mib
        && limit < least
    {
        let message = format!(
            "is {limit}, at least {least} are needed: the guest's memory and {OVERHEAD_MIB} for the VMM"
        );
        return Err(HostError::invalid("limits.memory_mib", message));
    }
    Ok(Limits {
        cpu_millis: wish.cpu_millis.or(defaults.cpu_millis),
        // A default that the guest alone would not fit into was not meant for it.
        memory_mib: wish
            .memory_mib
            .or_else(|| defaults.memory_mib.map(|it| it.max(least))),
        pids: wish.pids.or(defaults.pids),
        io: if wish.io.is_empty() {
            defaults.io.clone()
        } else {
            wish.io.clone()
        },
    })
}

/// Checks an idempotency key.
pub(super) fn check_key(key: &str) -> Result<(), HostError> {
    let usable = key.bytes().all(|byte| byte.is_ascii_graphic());
    if usable && (1..=MAX_KEY).contains(&key.len()) {
        return Ok(());
    }
    let message = format!("must be 1 to {MAX_KEY} printable ASCII characters without spaces");
    Err(HostError::invalid("Idempotency-Key", message))
}

fn check_label(name: &str, value: &str) -> Result<(), HostError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    if !(1..=MAX_LABEL_NAME).contains(&name.len()) || !name.chars().all(usable) {
        let message =
            format!("the name {name:?} must be 1 to {MAX_LABEL_NAME} letters, digits and . _ / -");
        return Err(HostError::invalid("labels", message));
    }
    if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
        let message =
            format!("must have at most {MAX_LABEL_VALUE} bytes and no control characters");
        return Err(HostError::invalid(format!("labels.{name}"), message));
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), HostError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("the name {name:?} is empty or has a = or a zero in it");
            return Err(HostError::invalid("env", message));
        }
        if value.contains('\0') {
            return Err(HostError::invalid(
                format!("env.{name}"),
                "has a zero in it",
            ));
        }
    }
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if env.len() > MAX_ENV || bytes > MAX_ENV_BYTES {
        let message = format!(
            "has {} variables of {bytes} bytes, at most {MAX_ENV} of {MAX_ENV_BYTES} are possible",
            env.len()
        );
        return Err(HostError::invalid("env", message));
    }
    Ok(())
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), HostError> {
    if range.contains(&value) {
        return Ok(());
    }
    let message = format!(
        "is {value}, {} to {} are possible",
        range.start(),
        range.end()
    );
    Err(HostError::invalid(field, message))
}

#[cfg(test)]
mod tests;
