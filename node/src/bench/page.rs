//! A report as one page of HTML: nothing is fetched, nothing is run, light or dark as the reader likes.

mod chart;
mod figures;
mod scale;
mod text;

use std::fmt::Write;

use super::numbers::float;
use super::report::{Report, StartRow, StepMean, SystemReport};
use super::table;
use chart::colour;
use figures::Figure;
use text::escape;

/// Everything.
pub(super) fn page(report: &Report) -> String {
    let mut html = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>rundlet bench</title>\n<style>\n",
    );
    html.push_str(include_str!("page/style.css"));
    html.push_str("</style>\n</head>\n<body>\n");
    head(&mut html, report);
    html.push_str("<div class=\"figures\">\n");
    for figure in figures::figures(report) {
        draw(&mut html, &figure);
    }
    html.push_str("</div>\n");
    for (slot, system) in report.systems.iter().enumerate() {
        steps(&mut html, slot, system);
    }
    html.push_str("<h2>All figures</h2>\n");
    for (head, rows) in table::tables(report) {
        grid(&mut html, &head, &rows);
    }
    remarks(&mut html, report);
    inputs(&mut html, report);
    html.push_str("</body>\n</html>\n");
    html
}

fn head(html: &mut String, report: &Report) {
    let (host, guest) = (&report.host, &report.guest);
    let _ = writeln!(
        html,
        "<h1>rundlet bench</h1>\n<p>{}, {} CPUs, {} MiB; Linux {}; KVM {}{}. Guest: {} MiB, {} vCPU, \
         scratch disk of {} MiB.</p>",
        escape(&host.cpu),
        host.logical_cpus,
        host.memory_kib / 1024,
        escape(&host.kernel),
        table::kvm(report),
        host.kvm_loop_ns
            .map(|ns| format!(" ({ns:.1} ns for a round of doctor's guest loop)"))
            .unwrap_or_default(),
        guest.memory_mib,
        guest.vcpus,
        guest.scratch_mib,
    );
    let _ = writeln!(
        html,
        "<p><code>rundlet bench {}</code>, {}. Times are good for this machine alone; \
         compare curves of one page.</p>",
        escape(&report.command.join(" ")),
        text::date(report.created)
    );
}

fn draw(html: &mut String, figure: &Figure) {
    let _ = writeln!(
        html,
        "<figure>\n<figcaption>{}<span>{}</span></figcaption>\n{}</figure>",
        escape(&figure.title),
        escape(&figure.about),
        figure.chart.svg()
    );
}

/// Where the time of a single start goes.
fn steps(html: &mut String, slot: usize, system: &SystemReport) {
    let fewest = |row: &&StartRow| (row.deployed, row.at_once);
    let row = system.start.iter().filter(|row| !row.steps.is_empty());
    let Some(row) = row.min_by_key(fewest) else {
        return;
    };
    let _ = writeln!(
        html,
        "<h2>One start, step by step: {}</h2>\n<p>Mean of {} starts, {} at once.</p>\n<div class=\"scroll\">{}</div>",
        escape(&system.name),
        row.ready,
        row.at_once,
        waterfall(slot, &row.steps)
    );
}

const BAR_LEFT: f64 = 330.0;
const BAR_RIGHT: f64 = 860.0;
const BAR_STEP: f64 = 24.0;

/// Bars that follow each other.
fn waterfall(slot: usize, steps: &[StepMean]) -> String {
    let whole: f64 = steps.iter().map(|step| step.mean_ms).sum();
    let scale = (BAR_RIGHT - BAR_LEFT) / whole.max(f64::MIN_POSITIVE);
    let height = BAR_STEP * float(steps.len()) + 6.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 960 {height}\" role=\"img\" aria-label=\"steps of a start\">\n"
    );
    let mut from = 0.0;
    for (place, step) in steps.iter().enumerate() {
        let top = BAR_STEP * float(place) + 4.0;
        let (x, width) = (BAR_LEFT + from * scale, (step.mean_ms * scale).max(1.0));
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"bar {}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{} ms</text>",
            BAR_LEFT - 10.0,
            top + 12.5,
            escape(&step.name),
            colour(slot),
            x + width + 7.0,
            top + 12.5,
            table::number(Some(step.mean_ms)),
        );
        from += step.mean_ms;
    }
    svg.push_str("</svg>\n");
    svg
}

fn grid(html: &mut String, head: &[&str], rows: &[Vec<String>]) {
    html.push_str("<div class=\"scroll\"><table>\n<tr>");
    for name in head {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("</tr>\n");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{}</td>", escape(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
}

fn remarks(html: &mut String, report: &Report) {
    html.push_str("<h2>Remarks</h2>\n<ul>\n");
    let of_systems = report.systems.iter().flat_map(table::remarks);
    for remark in of_systems.chain(report.notes.iter().cloned()) {
        let _ = writeln!(html, "<li>{}</li>", escape(&remark));
    }
    html.push_str("</ul>\n");
}

fn inputs(html: &mut String, report: &Report) {
    html.push_str("<h2>What took part</h2>\n<ul>\n");
    for input in &report.inputs {
        let version = input.version.as_deref();
        let _ = writeln!(
            html,
            "<li>{}{}: <code>{}</code></li>",
            escape(&input.name),
            version
                .map(|it| format!(", {}", escape(it)))
                .unwrap_or_default(),
            escape(&input.digest)
        );
    }
    html.push_str("</ul>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::golden::assert_golden;
    use crate::bench::report::example;

    #[test]
    fn the_page_is_as_it_was() {
        assert_golden("page/golden.html", &page(&example()));
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere_and_runs_nothing() {
        let html = page(&example());
        for word in ["http", "<script", "src=", "@import", "url("] {
            assert!(!html.contains(word), "{word}");
        }
        assert!(html.contains("it said &lt;no&gt;") && !html.contains("<no>"));
        assert!(html.contains("A CPU &lt;&amp;&gt; more"));
        assert!(html.contains("qemu: not measured: it is not in PATH"));
    }
}
