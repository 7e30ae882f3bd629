//! The figures of a page, after the four of the RunD paper (Li et al., USENIX ATC 2022): batches over
//! concurrency, the distribution of starts, processor time and memory, starts over what is deployed.

use super::chart::{Chart, Point, Series};
use super::scale::ScaleKind;
use crate::bench::numbers::{Summary, float};
use crate::bench::report::{DensityRow, Report, StartRow, SystemReport};
use crate::bench::system::Kind;
use crate::bench::table::number;

/// A chart with what it shows.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) about: String,
    pub(super) chart: Chart,
}

/// Those that there is something to draw in.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let mut all = vec![batches(report)];
    let mut sizes: Vec<usize> = empty_rows(report).map(|row| row.at_once).collect();
    sizes.sort_unstable();
    sizes.dedup();
    // The crowd first: that is where systems differ.
    all.extend(sizes.last().map(|&size| distribution(report, size)));
    all.extend(
        sizes
            .first()
            .filter(|_| sizes.len() > 1)
            .map(|&size| distribution(report, size)),
    );
    all.push(cpu_over_concurrency(report));
    all.push(over_density(
        report,
        "Processor time of a start over density",
        "All of the host's, for each sandbox of a step, by how many there were after it",
        "CPU time per start, ms",
        |row| row.host_cpu_ms,
    ));
    all.push(over_density(
        report,
        "Memory of processes over density",
        "Mean PSS of a sandbox's processes, its share of common ones included",
        "PSS per sandbox, KiB",
        |row| Some(row.pss_kib + row.backend_pss_kib + row.helper_pss_kib),
    ));
    all.push(over_density(
        report,
        "Memory of the host over density",
        "How much less memory is available than before, for each sandbox",
        "MemAvailable drop per sandbox, KiB",
        |row| Some(row.available_drop_kib),
    ));
    all.push(over_density(
        report,
        "Wake-ups of idle sandboxes over density",
        "How often threads of a sandbox's processes went to sleep again",
        "wake-ups per second and sandbox",
        |row| Some(row.wakeups_per_s),
    ));
    all.push(over_deployed(report));
    all.retain(|figure| !figure.chart.is_empty());
    all
}

/// The colour is the system's in every figure.
fn series(
    (slot, system): (usize, &SystemReport),
    name: String,
    points: impl Iterator<Item = Point>,
) -> Series {
    Series {
        name,
        slot,
        dashed: system.kind == Kind::Cold,
        stepped: false,
        points: points.collect(),
    }
}

fn systems(report: &Report) -> impl Iterator<Item = (usize, &SystemReport)> {
    report.systems.iter().enumerate()
}

/// Rows on a host without other sandboxes.
fn empty_rows(report: &Report) -> impl Iterator<Item = &StartRow> {
    let rows = report.systems.iter().flat_map(|it| &it.start);
    rows.filter(|row| row.deployed == 0)
}

fn batches(report: &Report) -> Figure {
    let curve = |(slot, system): (usize, &SystemReport)| {
        let point = |row: &StartRow| {
            let batch = row.batch_ms.filter(|_| row.deployed == 0)?;
            Some(Point {
                x: float(row.at_once),
                y: batch.p50,
                title: format!(
                    "{}, {} at once: {} ms, {} to {} in {} batches",
                    system.name,
                    row.at_once,
                    number(Some(batch.p50)),
                    number(Some(batch.min)),
                    number(Some(batch.max)),
                    row.rounds
                ),
            })
        };
        let points = system.start.iter().filter_map(point);
        series((slot, system), system.name.clone(), points)
    };
    Figure {
        title: "Batch time over concurrency".into(),
        about: "From the first request of a batch to its last ready sandbox, median of the batches"
            .into(),
        chart: Chart {
            x: "sandboxes started at once",
            y: "batch, ms",
            y_kind: None,
            series: systems(report).map(curve).collect(),
        },
    }
}

fn distribution(report: &Report, at_once: usize) -> Figure {
    let curve = |(slot, system): (usize, &SystemReport)| {
        let mut rows = system.start.iter();
        let row = rows.find(|row| row.deployed == 0 && row.at_once == at_once);
        let starts = row.map_or(&[][..], |row| &row.starts_ms);
        let point = |(ready, &ms): (usize, &f64)| Point {
            x: ms,
            y: float(ready) * 100.0 / float(starts.len()),
            title: String::new(),
        };
        // Upright from the axis at the first one.
        let points = starts.first().map(|first| (0, first)).into_iter();
        let points = points.chain((1..).zip(starts)).map(point);
        Series {
            stepped: true,
            ..series((slot, system), system.name.clone(), points)
        }
    };
    Figure {
        title: format!("Distribution of start times, {at_once} at once"),
        about: "From a sandbox's request to the word of its agent".into(),
        chart: Chart {
            x: "start, ms",
            y: "% of starts that took no longer",
            y_kind: Some(ScaleKind::Linear),
            series: systems(report).map(curve).collect(),
        },
    }
}

fn cpu_over_concurrency(report: &Report) -> Figure {
    let curve = |(slot, system): (usize, &SystemReport)| {
        let point = |row: &StartRow| {
            let cpu = row.host_cpu_ms.filter(|_| row.deployed == 0)?;
            Some(Point {
                x: float(row.at_once),
                y: cpu,
                title: format!(
                    "{}, {} at once: {} ms of the host, {} of them in the system's processes",
                    system.name,
                    row.at_once,
                    number(Some(cpu)),
                    number(row.process_cpu_ms)
                ),
            })
        };
        let points = system.start.iter().filter_map(point);
        series((slot, system), system.name.clone(), points)
    };
    Figure {
        title: "Processor time of a start over concurrency".into(),
        about: "All of the host's while a batch is started, for each sandbox".into(),
        chart: Chart {
            x: "sandboxes started at once",
            y: "CPU time per start, ms",
            y_kind: None,
            series: systems(report).map(curve).collect(),
        },
    }
}

fn over_density(
    report: &Report,
    title: &str,
    about: &str,
    y: &'static str,
    value: impl Fn(&DensityRow) -> Option<f64>,
) -> Figure {
    let curve = |(slot, system): (usize, &SystemReport)| {
        let rows = system.density.iter().flat_map(|it| &it.rows);
        let points = rows.filter_map(|row| {
            let y = value(row)?;
            Some(Point {
                x: float(row.deployed),
                y,
                title: format!(
                    "{}, {} deployed: {}",
                    system.name,
                    row.deployed,
                    number(Some(y))
                ),
            })
        });
        series((slot, system), system.name.clone(), points)
    };
    Figure {
        title: title.into(),
        about: about.into(),
        chart: Chart {
            x: "sandboxes deployed",
            y,
            y_kind: None,
            series: systems(report).map(curve).collect(),
        },
    }
}

/// Of the steps of a density run, or of batches on an empty host and with sandboxes deployed.
fn over_deployed(report: &Report) -> Figure {
    let mut curves = Vec::new();
    for (slot, system) in systems(report) {
        let mut sizes: Vec<usize> = (system.start.iter())
            .filter(|row| row.deployed > 0)
            .map(|row| row.at_once)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            let rows = system.start.iter().filter(|row| row.at_once == size);
            let name = format!("{}, {size} at once", system.name);
            let points = rows
                .filter_map(|row| Some(start_point(&name, row.deployed, row.start_ms.as_ref()?)));
            curves.push(series((slot, system), name.clone(), points));
        }
        let rows = system.density.iter().flat_map(|it| &it.rows);
        let points = rows.filter_map(|row| {
            Some(start_point(
                &system.name,
                row.deployed,
                row.start_ms.as_ref()?,
            ))
        });
        curves.push(series((slot, system), system.name.clone(), points));
    }
    Figure {
        title: "Start time over deployed sandboxes".into(),
        about: "Median of a sandbox's start, by how many others there are".into(),
        chart: Chart {
            x: "sandboxes deployed",
            y: "start, ms",
            y_kind: None,
            series: curves,
        },
    }
}

fn start_point(name: &str, deployed: usize, start: &Summary) -> Point {
    Point {
        x: float(deployed),
        y: start.p50,
        title: format!(
            "{name}, {deployed} deployed: median {} ms, p99 {} ms",
            number(Some(start.p50)),
            number(Some(start.p99))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::example;

    #[test]
    fn each_figure_has_the_curves_that_were_measured() {
        let figures = figures(&example());
        let shown: Vec<(String, Vec<(&str, usize)>)> = figures
            .iter()
            .map(|figure| {
                let curves = figure
                    .chart
                    .series
                    .iter()
                    .filter(|it| !it.points.is_empty());
                let curves = curves.map(|it| (it.name.as_str(), it.points.len()));
                (figure.title.clone(), curves.collect())
            })
            .collect();
        let both = |one, other| vec![("rundlet", one), ("firecracker", other)];
        let expected = [
            ("Batch time over concurrency", both(2, 1)),
            ("Distribution of start times, 4 at once", both(5, 3)),
            ("Distribution of start times, 1 at once", both(5, 5)),
            ("Processor time of a start over concurrency", both(2, 1)),
            ("Processor time of a start over density", both(2, 1)),
            ("Memory of processes over density", both(2, 1)),
            ("Memory of the host over density", both(2, 1)),
            ("Wake-ups of idle sandboxes over density", both(2, 1)),
            (
                "Start time over deployed sandboxes",
                vec![
                    ("rundlet, 4 at once", 2),
                    ("rundlet", 2),
                    ("firecracker", 1),
                ],
            ),
        ]
        .map(|(title, curves)| (title.to_owned(), curves));
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_was_not_measured_has_no_figure() {
        let mut report = example();
        for system in &mut report.systems {
            system.density = None;
            system.start.clear();
        }
        assert!(figures(&report).is_empty());
    }
}
