use super::example::example;
use super::*;
use crate::bench::golden::assert_golden;

/// A change of this file is a change of the schema: docs/bench.md says what it means for readers.
#[test]
fn the_schema_is_as_it_was() {
    assert_golden("report/golden.json", &example().json());
}

#[test]
fn what_was_written_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    fs::write(&path, example().json()).unwrap();
    assert_eq!(Report::read(&path).unwrap(), example());

    let newer = example()
        .json()
        .replacen("\"version\": 1", "\"version\": 9", 1);
    fs::write(&path, newer).unwrap();
    let error = Report::read(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("version 9, this program reads 1"),
        "{error}"
    );
    fs::write(&path, "{}").unwrap();
    assert!(matches!(Report::read(&path), Err(ReportError::Json { .. })));
}

#[test]
fn several_runs_are_one_report() {
    let mut density_only = example();
    for system in &mut density_only.systems {
        system.start.clear();
        system.notes.push("another".into());
    }
    density_only.systems.push(SystemReport {
        name: "new".into(),
        ..density_only.systems[0].clone()
    });
    let mut start_only = example();
    for system in &mut start_only.systems {
        system.density = None;
    }
    let merged = Report::merged(vec![start_only, density_only.clone()]).unwrap();
    assert_eq!(merged.systems.len(), 4);
    assert_eq!(merged.systems[0].start, example().systems[0].start);
    assert_eq!(merged.systems[0].density, example().systems[0].density);
    assert_eq!(merged.systems[0].notes, ["clones", "another"]);
    assert_eq!(merged.inputs, example().inputs);
    assert_eq!(merged.notes, Vec::<String>::new());

    density_only.host.logical_cpus += 1;
    let merged = Report::merged(vec![example(), density_only]).unwrap();
    assert_eq!(merged.notes.len(), 1);
    assert_eq!(Report::merged(Vec::new()), None);
}
