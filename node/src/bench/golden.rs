//! Output that is the same in every run, beside the code that makes it.

use std::fs;
use std::path::Path;

/// Set to `write`, goldens are written instead of compared: look at the difference before it is committed.
const VARIABLE: &str = "RUNDLET_GOLDEN";

/// `name` is a file below this directory.
pub(super) fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/bench")
        .join(name);
    if std::env::var(VARIABLE).is_ok_and(|it| it == "write") {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    let difference = text.lines().zip(golden.lines()).enumerate();
    for (number, (now, then)) in difference {
        assert_eq!(now, then, "line {} of {name}", number + 1);
    }
    assert_eq!(text.len(), golden.len(), "{name}");
}
