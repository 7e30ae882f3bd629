//! What the host says on the kernel command line: the `rundlet.*` words that are for PID 1.

/// The guest's part of the kernel command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BootConfig {
    /// Block device with the read-only EROFS image.
    pub(crate) root: String,
    /// Block device with a formatted ext4; the writable layer is in memory where absent.
    pub(crate) scratch: Option<String>,
    pub(crate) hostname: String,
}

/// Why the command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CmdlineError {
    #[error("cannot read /proc/cmdline")]
    Read(#[source] std::io::Error),
    #[error("the kernel command line has no rundlet.root=DEVICE")]
    NoRoot,
}

impl BootConfig {
    pub(crate) fn read() -> Result<Self, CmdlineError> {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").map_err(CmdlineError::Read)?)
    }

    /// The last of equal keys wins, as for the kernel's own. Other `rundlet.` keys are the kernel's.
    fn parse(line: &str) -> Result<Self, CmdlineError> {
        let value = |key: &str| {
            let words = line.split_ascii_whitespace().rev();
            let mut values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            values.next().map(str::to_owned)
        };
        Ok(BootConfig {
            root: value("rundlet.root").ok_or(CmdlineError::NoRoot)?,
            scratch: value("rundlet.scratch"),
            hostname: value("rundlet.hostname").unwrap_or_else(|| "rundlet".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_words_among_others() {
        let line = "nokaslr rundlet.window=0x800000,0x200000 rundlet.root=/dev/vda x rundlet.scratch=/dev/vdb \
                    rundlet.hostname=one rundlet.hostname=box\n";
        let config = BootConfig::parse(line).unwrap();
        let wanted = BootConfig {
            root: "/dev/vda".into(),
            scratch: Some("/dev/vdb".into()),
            hostname: "box".into(),
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn scratch_and_hostname_are_optional_and_root_is_not() {
        let config = BootConfig::parse("rundlet.root=/dev/vda").unwrap();
        assert_eq!(
            (config.scratch, config.hostname.as_str()),
            (None, "rundlet")
        );
        for line in ["", "rundlet.rootfs=/dev/vda", "rundlet.root"] {
            assert!(matches!(BootConfig::parse(line), Err(CmdlineError::NoRoot)));
        }
    }
}
