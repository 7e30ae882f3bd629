//! Text inside of HTML.

/// Harmless in text and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_gets_out() {
        assert_eq!(
            super::escape("<a b=\"c\">&amp; 'd'"),
            "&lt;a b=&quot;c&quot;&gt;&amp;amp; 'd'"
        );
    }
}
