//! What a VMM that a zygote made says on its stdout, a line of JSON for each event, while somebody waits
//! for one of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::vmm::Line;
use super::{VmmExit, process};

/// Longest event of a VMM that is read.
const MAX_EVENT: usize = 64 * 1024;

/// Why the awaited word did not come.
#[derive(Debug)]
pub(crate) enum Silence {
    /// It says that it ends.
    Exit(VmmExit),
    /// It has ended, or what it says is no event.
    Nothing,
    /// Not in time.
    Late,
    Read(io::Error),
}

/// The events of one VMM.
#[derive(Debug)]
pub(crate) struct Words {
    from: File,
    text: Vec<u8>,
}

impl Words {
    /// `pipe` is the end that we read.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self {
            from: pipe.into(),
            text: Vec::new(),
        }
    }

    /// Waits for the named instants. A clone says them as soon as its vCPUs run, a machine that boots when
    /// its agent is ready.
    pub(crate) fn timeline(&mut self, limit: Duration) -> Result<BTreeMap<String, u64>, Silence> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(deadline)? {
                Line::Timeline { instants_us } => return Ok(instants_us),
                Line::Exit(exit) => return Err(Silence::Exit(exit)),
                Line::Other => {}
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Line, Silence> {
        let mut chunk = [0; 1024];
        loop {
            while let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(line) => return Ok(line),
                    Err(error) => log::warn!("a VMM said what is no event: {error}"),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !process::readable_within(&self.from, left).map_err(Silence::Read)? {
                return Err(Silence::Late);
            }
            let count = self.from.read(&mut chunk).map_err(Silence::Read)?;
            if count == 0 || self.text.len() > MAX_EVENT {
                return Err(Silence::Nothing);
            }
            self.text
                .extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Write;

    fn after(text: &[u8]) -> Result<BTreeMap<String, u64>, Silence> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut write = File::from(write);
        let text = text.to_vec();
        // A pipe holds less than the longest event.
        let writer = std::thread::spawn(move || write.write_all(&text).is_ok());
        let result = Words::new(read).timeline(Duration::from_secs(5));
        writer.join().unwrap();
        result
    }

    #[test]
    fn the_timeline_is_found_among_other_words() {
        let words = b"{\"event\":\"started\"}\nnonsense\n{\"event\":\"timeline\",\"instants_us\":{\"running\":7}}\n";
        assert_eq!(after(words).unwrap()["running"], 7);
    }

    #[test]
    fn an_end_a_flood_and_silence_are_told_apart() {
        let exit = after(b"{\"event\":\"exit\",\"reason\":\"panic\",\"message\":\"m\"}\n");
        assert!(matches!(exit, Err(Silence::Exit(it)) if it.reason == "panic"));
        assert!(matches!(after(b""), Err(Silence::Nothing)));
        assert!(matches!(after(&[b'x'; 200_000]), Err(Silence::Nothing)));
        let (read, _write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let late = Words::new(read).timeline(Duration::from_millis(20));
        assert!(matches!(late, Err(Silence::Late)));
    }
}
