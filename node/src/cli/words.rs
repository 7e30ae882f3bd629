//! What the parser does not do by itself: clustered switches, and a `--` before any name.

/// Long options without a value; the others take the argument after them.
const SWITCHES: [&str; 5] = ["--tty", "--interactive", "--timeline", "--stats", "--help"];

/// Verbs with a command of somebody else's at the end.
const VERBS: [&str; 2] = ["run", "exec"];

/// Reads short switches that were written together: `-it` is `-i -t`. What comes after the image's name
/// is the command's and left alone. A `--` with no name before it, as in `run --template T -- CMD`, is
/// doubled: the parser takes one for itself, and the other says that there is no name.
pub(crate) fn split_switches(args: &[String]) -> Vec<String> {
    let mut all = Vec::with_capacity(args.len() + 1);
    let mut ours = args
        .first()
        .is_some_and(|verb| VERBS.contains(&verb.as_str()));
    let mut value = true;
    for arg in args {
        if ours && matches!(arg.as_str(), "-it" | "-ti") {
            all.extend(["-i".to_owned(), "-t".to_owned()]);
            continue;
        }
        if ours && !value && arg == "--" {
            all.push(arg.clone());
        }
        ours = ours && (value || (arg.starts_with('-') && arg != "--"));
        value = arg.starts_with("--") && !SWITCHES.contains(&arg.as_str());
        all.push(arg.clone());
    }
    all
}
