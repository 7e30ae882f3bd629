//! The figures for a terminal.

use super::numbers::Summary;
use super::report::{Density, DensityRow, Report, StartRow, SystemReport};

/// Columns of text: the first flush left, the others flush right.
pub(super) fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |place: usize| {
        let cells = rows.iter().filter_map(|row| row.get(place));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(head.get(place).map_or(0, |name| name.chars().count()))
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (place, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            if place == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let mut text = line(&head);
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

const START: [&str; 11] = [
    "starts", "at once", "deployed", "batch ms", "p50", "p90", "p99", "max", "CPU ms", "own",
    "failed",
];

const DENSITY: [&str; 12] = [
    "idle, each",
    "deployed",
    "PSS KiB",
    "USS",
    "backend",
    "helpers",
    "avail. drop",
    "page tables",
    "2nd level",
    "slab",
    "wake-ups/s",
    "start p50",
];

/// All of it.
pub(super) fn table(report: &Report) -> String {
    let host = &report.host;
    let guest = &report.guest;
    let mut text = format!(
        "{}, {} CPUs, {} MiB, Linux {}, KVM {}\nguest: {} MiB, {} vCPU, scratch disk of {} MiB\n",
        host.cpu,
        host.logical_cpus,
        host.memory_kib / 1024,
        host.kernel,
        kvm(report),
        guest.memory_mib,
        guest.vcpus,
        guest.scratch_mib,
    );
    for (head, rows) in tables(report) {
        text.push('\n');
        text.push_str(&columns(&head, &rows));
    }
    let remarks: Vec<String> = report.systems.iter().flat_map(remarks).collect();
    if !remarks.is_empty() || !report.notes.is_empty() {
        text.push('\n');
    }
    for remark in remarks.iter().chain(&report.notes) {
        text.push_str(remark);
        text.push('\n');
    }
    text
}

/// A head and rows.
pub(super) type Table = (Vec<&'static str>, Vec<Vec<String>>);

/// Those with rows.
pub(super) fn tables(report: &Report) -> Vec<Table> {
    let starts = each(report, |system| system.start.iter().map(start_row));
    let density = each(report, |system| {
        let rows = system.density.iter().flat_map(|it| &it.rows);
        rows.map(density_row)
    });
    [(START.to_vec(), starts), (DENSITY.to_vec(), density)]
        .into_iter()
        .filter(|(_, rows)| !rows.is_empty())
        .collect()
}

/// `native`, `emulated` or `absent`.
pub(super) fn kvm(report: &Report) -> String {
    let word = serde_json::to_value(report.host.kvm).unwrap_or_default();
    word.as_str().unwrap_or_default().to_owned()
}

/// Rows of all systems, each beginning with its system's name.
fn each<'a, I: Iterator<Item = Vec<String>>>(
    report: &'a Report,
    rows: impl Fn(&'a SystemReport) -> I,
) -> Vec<Vec<String>> {
    let named = |system: &'a SystemReport| {
        rows(system).map(|mut row| {
            row.insert(0, system.name.clone());
            row
        })
    };
    report.systems.iter().flat_map(named).collect()
}

fn start_row(row: &StartRow) -> Vec<String> {
    let part =
        |summary: &Option<Summary>, of: fn(&Summary) -> f64| number(summary.as_ref().map(of));
    vec![
        row.at_once.to_string(),
        row.deployed.to_string(),
        part(&row.batch_ms, |it| it.p50),
        part(&row.start_ms, |it| it.p50),
        part(&row.start_ms, |it| it.p90),
        part(&row.start_ms, |it| it.p99),
        part(&row.start_ms, |it| it.max),
        number(row.host_cpu_ms),
        number(row.process_cpu_ms),
        row.failed.to_string(),
    ]
}

fn density_row(row: &DensityRow) -> Vec<String> {
    vec![
        row.deployed.to_string(),
        number(Some(row.pss_kib)),
        number(Some(row.uss_kib)),
        number(Some(row.backend_pss_kib)),
        number(Some(row.helper_pss_kib)),
        number(Some(row.available_drop_kib)),
        number(Some(row.page_tables_kib)),
        number(Some(row.secondary_page_tables_kib)),
        number(Some(row.slab_kib)),
        number(Some(row.wakeups_per_s)),
        number(row.start_ms.map(|it| it.p50)),
    ]
}

/// What the rows of a system cannot say.
pub(super) fn remarks(system: &SystemReport) -> Vec<String> {
    let mut remarks: Vec<String> = system.notes.clone();
    remarks.extend(
        system
            .unusable
            .iter()
            .map(|why| format!("not measured: {why}")),
    );
    for row in &system.start {
        let of = |what: &str| {
            let deployed = match row.deployed {
                0 => String::new(),
                deployed => format!(" with {deployed} deployed"),
            };
            format!("{} at once{deployed}: {what}", row.at_once)
        };
        remarks.extend(row.failure.iter().map(|why| of(why)));
        remarks.extend(row.stopped.iter().map(|why| of(why)));
    }
    let stopped = system
        .density
        .iter()
        .filter_map(|Density { stopped, .. }| stopped.as_ref());
    remarks.extend(stopped.map(|why| format!("ended early: {why}")));
    let named = |remark: String| format!("{}: {remark}", system.name);
    remarks.into_iter().map(named).collect()
}

/// Three significant digits, whole thousands; a dash for what was not measured.
pub(super) fn number(value: Option<f64>) -> String {
    let Some(value) = value else {
        return "-".into();
    };
    match value.abs() {
        size if size >= 100.0 => grouped(value),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 => format!("{value:.2}"),
        _ => "0".into(),
    }
}

/// 12,345.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::golden::assert_golden;
    use crate::bench::report::example;

    #[test]
    fn numbers_have_as_many_digits_as_they_are_good_for() {
        for (value, text) in [
            (0.0, "0"),
            (0.004, "0.00"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1_234.5, "1,234"),
            (1_234_567.0, "1,234,567"),
            (-250.0, "-250"),
            (-0.5, "-0.50"),
        ] {
            assert_eq!(number(Some(value)), text, "{value}");
        }
        assert_eq!(number(None), "-");
    }

    #[test]
    fn the_table_is_as_it_was() {
        assert_golden("report/golden.txt", &table(&example()));
    }
}
