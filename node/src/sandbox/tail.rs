//! The ends of logs, for errors. A guest's console is hostile text: control characters do not reach
//! the terminal.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest line that is kept, in bytes; longer ones are cut into several.
pub(crate) const MAX_LINE: u64 = 4096;

/// Lines that are kept of a running child.
const MAX_LINES: usize = 64;

/// How much of a log's end is looked at.
const MAX_TAIL: u64 = 64 * 1024;

/// The last lines of a stream that is being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    pub(crate) fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = lines.len().saturating_sub(count);
        lines.iter().skip(skip).cloned().collect()
    }
}

/// Calls `each` with every line, cut at [`MAX_LINE`], until the stream ends.
pub(crate) fn lines(from: impl Read, mut each: impl FnMut(&[u8])) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => each(line.strip_suffix(b"\n").unwrap_or(&line)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::debug!("reading a log ends: {error}");
                return;
            }
        }
    }
}

/// The last lines of a log file; none when it cannot be read.
pub(crate) fn of_file(path: &Path, count: usize) -> Vec<String> {
    let tail = Tail::default();
    let read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_TAIL)))?;
        lines(file.take(MAX_TAIL), |line| tail.push(printable(line)));
        Ok(())
    };
    if let Err(error) = read() {
        log::debug!("no tail of {}: {error}", path.display());
    }
    tail.last(count)
}

/// Text that is safe on a terminal: control characters become `\x1b` and the like.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\t' => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        assert_eq!(
            printable(b"\x1b]0;title\x07 ok\ttab \xff\r\n"),
            "\\u{1b}]0;title\\u{7} ok\ttab \u{fffd}"
        );
    }

    #[test]
    fn an_endless_line_is_cut_and_only_the_end_is_kept() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::copy(&mut io::repeat(b'x').take(300_000), &mut file).unwrap();
        io::Write::write_all(&mut file, b"\nlast\n").unwrap();
        let tail = of_file(file.path(), 3);
        assert_eq!(tail.len(), 3);
        assert_eq!(tail[2], "last");
        assert!(tail.iter().all(|line| line.len() as u64 <= MAX_LINE));
        assert_eq!(of_file(Path::new("/nonexistent"), 3), Vec::<String>::new());
    }
}
