//! Limits as values of a slot's files, and which of them have to be written.

use super::PoolError;
use super::group::Group;
use crate::host::model::Limits;

/// Period of `cpu.max`, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

const CPU_MILLIS: std::ops::RangeInclusive<u32> = 10..=1_024_000;
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 32..=(1 << 22);
const PIDS: std::ops::RangeInclusive<u32> = 16..=4_194_304;
/// Lines of `io.max`.
const IO_LINES: usize = 16;
/// What a line may limit, and all of them lifted.
const IO_KEYS: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// A limit that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct LimitError {
    /// As in [`Limits`], e.g. `cpu_millis` or `io[2]`.
    pub field: String,
    pub message: String,
}

/// Checks everything that can be known without the sandbox.
///
/// # Errors
/// The first limit that no slot could have.
pub fn check(limits: &Limits) -> Result<(), LimitError> {
    for (field, value, range) in [
        ("cpu_millis", limits.cpu_millis, CPU_MILLIS),
        ("memory_mib", limits.memory_mib, MEMORY_MIB),
        ("pids", limits.pids, PIDS),
    ] {
        if let Some(value) = value
            && !range.contains(&value)
        {
            let message = format!(
                "is {value}, {} to {} are possible",
                range.start(),
                range.end()
            );
            return Err(LimitError {
                field: field.into(),
                message,
            });
        }
    }
    if limits.io.len() > IO_LINES {
        return Err(LimitError {
            field: "io".into(),
            message: format!(
                "has {} lines, at most {IO_LINES} are possible",
                limits.io.len()
            ),
        });
    }
    for (index, line) in limits.io.iter().enumerate() {
        if !is_io_line(line) {
            return Err(LimitError {
                field: format!("io[{index}]"),
                message: format!("{line:?} is not like \"8:0 rbps=1048576 wiops=max\""),
            });
        }
    }
    Ok(())
}

fn is_io_line(line: &str) -> bool {
    let mut words = line.split(' ');
    let number = |text: &str| text.parse::<u64>().is_ok() && !text.starts_with('+');
    let device = words.next().and_then(|word| word.split_once(':'));
    let limits = |word: &str| {
        word.split_once('=')
            .is_some_and(|(key, value)| IO_KEYS.contains(&key) && (value == "max" || number(value)))
    };
    device.is_some_and(|(major, minor)| number(major) && number(minor))
        && line.len() < 256
        && line.contains(' ')
        && words.all(limits)
}

/// One write.
type Setting = (&'static str, String);

/// Gives `group`, which has the limits `from`, the limits `to`, and writes only where these differ. Of unknown limits
/// every file is written. After an error the group's limits are unknown.
pub(crate) fn write(group: &Group, from: Option<&Limits>, to: &Limits) -> Result<(), PoolError> {
    let held;
    let from_io = match from {
        Some(from) => &from.io,
        None => {
            // Missing: no controller, no limits.
            let text = group.read("io.max").unwrap_or_default();
            held = text.lines().map(str::to_owned).collect();
            &held
        }
    };
    let mut settings = scalars(from, to);
    settings.extend(io(from_io, &to.io));
    for (file, value) in settings {
        group
            .write(file, &value)
            .map_err(|source| PoolError::Limit {
                slot: group.path().display().to_string(),
                file,
                value,
                source,
            })?;
    }
    Ok(())
}

fn scalars(from: Option<&Limits>, to: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |file, of: fn(&Limits) -> Option<u64>, value: fn(Option<u64>) -> String| {
        let wanted = of(to);
        if from.is_none_or(|from| of(from) != wanted) {
            settings.push((file, value(wanted)));
        }
    };
    let plain = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |it| it.to_string());
    set(
        "cpu.max",
        |it| {
            it.cpu_millis
                .map(|millis| u64::from(millis) * (PERIOD_US / 1000))
        },
        |quota| match quota {
            Some(quota) => format!("{quota} {PERIOD_US}"),
            None => format!("max {PERIOD_US}"),
        },
    );
    set(
        "memory.max",
        |it| it.memory_mib.map(|mib| u64::from(mib) << 20),
        plain,
    );
    set("pids.max", |it| it.pids.map(u64::from), plain);
    settings
}

/// Lines of one device add up, so old ones are lifted first.
fn io(from: &[String], to: &[String]) -> Vec<Setting> {
    if from == to {
        return Vec::new();
    }
    let lifted = from.iter().filter_map(|line| {
        let (device, _) = line.split_once(' ')?;
        let nothing = IO_KEYS.map(|key| format!("{key}=max")).join(" ");
        Some(format!("{device} {nothing}"))
    });
    let lines = lifted.chain(to.iter().cloned());
    lines.map(|line| ("io.max", line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let small = Limits {
            cpu_millis: Some(500),
            memory_mib: Some(256),
            ..Limits::default()
        };
        let other = Limits {
            pids: Some(64),
            ..small.clone()
        };
        assert_eq!(scalars(Some(&small), &small), []);
        assert_eq!(
            scalars(Some(&small), &other),
            [("pids.max", "64".to_owned())]
        );
        let back = scalars(Some(&other), &Limits::default());
        let text: Vec<_> = back
            .iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        assert_eq!(
            text,
            ["cpu.max=max 100000", "memory.max=max", "pids.max=max"]
        );
        let all = scalars(None, &small);
        assert_eq!(all[0].1, "50000 100000");
        assert_eq!(all[1].1, "268435456");
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn io_limits_of_before_are_lifted() {
        let from = ["8:0 rbps=1 wbps=max riops=max wiops=max".to_owned()];
        let to = ["8:16 wiops=5".to_owned()];
        let lines: Vec<String> = io(&from, &to).into_iter().map(|(_, line)| line).collect();
        assert_eq!(
            lines,
            ["8:0 rbps=max wbps=max riops=max wiops=max", "8:16 wiops=5"]
        );
        assert_eq!(io(&to, &to), []);
    }

    #[test]
    fn limits_that_cannot_be_are_named() {
        let io = |line: &str| Limits {
            io: vec!["8:0 rbps=1".into(), line.into()],
            ..Limits::default()
        };
        for line in ["8:0 rbps=1048576", "259:3 riops=max wiops=12"] {
            assert_eq!(check(&io(line)), Ok(()));
        }
        for line in [
            "",
            "8:0",
            "8:0 ",
            "8 rbps=1",
            "8:0 rbps=-1",
            "8:0 rbps=1\n",
            "8:0  rbps=1",
            "a:0 rbps=1",
            "8:0 bps=1",
            "8:0 rbps=1 9:0",
        ] {
            assert_eq!(check(&io(line)).unwrap_err().field, "io[1]", "{line:?}");
        }
        let few = Limits {
            pids: Some(3),
            ..Limits::default()
        };
        let error = check(&few).unwrap_err().to_string();
        assert_eq!(error, "pids: is 3, 16 to 4194304 are possible");
    }
}
