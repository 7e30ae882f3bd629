use super::*;
use crate::bench::fake::Fake;
use crate::bench::system::Kind;

fn contender<'a>(name: &str, make: impl Fn() -> Result<Fake, StartFailure> + 'a) -> Contender<'a> {
    Contender::new(name, Kind::Cold, Vec::new(), move || {
        Ok(Box::new(make()?) as Box<dyn System>)
    })
}

fn measured(contender: Contender<'_>, plan: &StartPlan, session: &Session) -> Vec<StartRow> {
    let mut contenders = [contender];
    measure(&mut contenders, plan, session);
    let [contender] = contenders;
    contender.report.start
}

#[test]
fn every_concurrency_has_its_row_and_again_with_others_deployed() {
    let plan = StartPlan {
        count: 5,
        concurrency: vec![1, 4],
        deployed: 3,
    };
    let rows = measured(
        contender("fake", || Ok(Fake::default())),
        &plan,
        &Session::quiet(),
    );
    let shape: Vec<_> = rows
        .iter()
        .map(|row| (row.deployed, row.at_once, row.rounds, row.ready))
        .collect();
    assert_eq!(
        shape,
        [(0, 1, 5, 5), (0, 4, 2, 8), (3, 1, 5, 5), (3, 4, 2, 8)]
    );
    for row in &rows {
        let start = row.start_ms.unwrap();
        assert!((start.p50 - 10.0).abs() < 0.01 && (start.max - 10.0).abs() < 0.01);
        assert_eq!(row.starts_ms.len(), row.ready);
        let steps: Vec<_> = row.steps.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(steps, ["one", "two"]);
        assert!((row.steps[0].mean_ms - 4.0).abs() < 0.01);
        assert!(row.host_cpu_ms.is_some() && row.process_cpu_ms.is_some());
        assert_eq!(row.batch_ms.is_some(), row.failed == 0);
    }
    assert!((rows[1].batch_ms.unwrap().p50 - 13.0).abs() < 0.01);
    assert_eq!(plan.starts(), 1 + 2 * (5 + 8) + 3);
}

#[test]
fn failures_are_counted_and_told_once() {
    let plan = StartPlan {
        count: 4,
        concurrency: vec![2],
        deployed: 0,
    };
    let rows = measured(
        contender("fake", || Ok(Fake::failing_at(2))),
        &plan,
        &Session::quiet(),
    );
    assert_eq!((rows[0].ready, rows[0].failed), (3, 1));
    assert_eq!(rows[0].failure.as_deref(), Some("number 2 does not start"));
    // The batch with the failure has no time; the other one has.
    assert!(rows[0].batch_ms.is_some());
}

#[test]
fn a_batch_without_any_ready_ends_the_row() {
    let plan = StartPlan {
        count: 3,
        concurrency: vec![1],
        deployed: 0,
    };
    let rows = measured(
        contender("fake", || Ok(Fake::failing_at(1))),
        &plan,
        &Session::quiet(),
    );
    assert_eq!((rows[0].rounds, rows[0].ready, rows[0].failed), (1, 0, 1));
    assert!(rows[0].stopped.is_some());
    assert_eq!((rows[0].start_ms, rows[0].host_cpu_ms), (None, None));
}

#[test]
fn what_is_deployed_in_vain_is_no_ground_for_figures() {
    let plan = StartPlan {
        count: 1,
        concurrency: vec![1],
        deployed: 3,
    };
    let rows = measured(
        contender("fake", || Ok(Fake::failing_at(4))),
        &plan,
        &Session::quiet(),
    );
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].rounds, 0);
    let why = rows[1].stopped.as_deref().unwrap();
    assert!(
        why.starts_with("only 2 of 3 could be deployed before: "),
        "{why}"
    );
}

#[test]
fn a_system_that_cannot_be_made_says_so_and_the_others_go_on() {
    let plan = StartPlan {
        count: 1,
        concurrency: vec![1],
        deployed: 0,
    };
    let mut contenders = [
        contender("broken", || Err(StartFailure("not here".into()))),
        contender("fake", || Ok(Fake::default())),
    ];
    measure(&mut contenders, &plan, &Session::quiet());
    assert_eq!(contenders[0].report.unusable.as_deref(), Some("not here"));
    assert!(contenders[0].report.start.is_empty());
    assert_eq!(contenders[1].report.start.len(), 1);
}
