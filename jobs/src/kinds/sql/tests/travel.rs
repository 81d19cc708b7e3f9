//! A plan that goes to other hosts.

use datafusion::{physical_plan::displayable, prelude::SessionContext};
use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};

use super::{
    super::{ballista::Codec, *},
    shelf::{Shelf, numbers, parquet, spec, texts},
};

const JOB: &str = "[sql]\nengine = 'ballista'\nquery = '''select p.n, t.name, count(*) from p join t on p.n = t.n
    where day = 2 group by 1, 2 order by 1'''
    tables = { p = 'day=*/*.parquet', t = { include = '*.csv', delimiter = ';' } }\n[workers]\ncount = 2\n";

fn shelf() -> Shelf {
    let rows = parquet(&[("n", numbers([1, 2, 3])), ("text", texts(["a", "b", "c"]))]);
    let text = b"n;name\n1;one\n2;two\n".to_vec();
    Shelf::new([("day=1/a.parquet", rows.clone()), ("day=2/b.parquet", rows), ("names.csv", text)])
}

#[tokio::test]
async fn it_names_no_place_of_a_host_and_is_the_same_on_another() {
    let (here, there) = (shelf(), shelf());
    let (job, split) = (spec(JOB), here.split());
    let session = planned(&here.volume(), &job, &split, (Engine::Ballista, 2)).await.unwrap();
    let plan = session.frame().await.unwrap().create_physical_plan().await.unwrap();
    let bytes = ballista::encoded(&plan, &Codec::new(&here.volume(), &job)).unwrap();
    let root = here.root.path().file_name().unwrap().to_str().unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains(root));

    let config = engine::config_of(Engine::Ballista, &job, 2).unwrap();
    let state = ballista::scheduling(&there.volume(), config).unwrap();
    let context = SessionContext::new_with_state(state).task_ctx();
    let arrived = PhysicalPlanNode::try_decode(&bytes).unwrap();
    let arrived = arrived.try_into_physical_plan(&context, &Codec::new(&there.volume(), &job)).unwrap();
    // A hint in which order row groups are best read is of the process that has it.
    let shown = |plan| displayable(plan).indent(true).to_string().replace(", sort_order_for_reorder=[n@0 ASC]", "");
    assert_eq!(shown(arrived.as_ref()), shown(plan.as_ref()));
    let rows = datafusion::physical_plan::collect(arrived, context).await.unwrap();
    let rows = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
    assert!(rows.contains("| 1 | one  | 1        |") && rows.contains("| 2 | two  | 1        |"), "{rows}");
}

#[test]
fn what_stays_in_one_process_is_named_with_the_other_engine() {
    let shelf = shelf();
    let recursive = "[sql]\nquery = '''with recursive r(n) as (select 1 union all select n + 1 from r where n < 3)
        select r.n from r join t on r.n = t.n'''\ntables.t = { include = '*.csv', delimiter = ';' }\n";
    let error = shelf.check(&format!("{recursive}[workers]\ncount = 2\n")).err();
    assert_eq!(error, None, "forebay has chosen the engine");
    let asked = recursive.replace("query", "engine = 'ballista'\nquery");
    let error = shelf.check(&asked).unwrap_err();
    assert!(error.contains("a RecursiveQueryExec, which") && error.contains("engine = \"datafusion\""), "{error}");
}

#[tokio::test]
async fn what_forebay_chose_ballista_for_and_it_cannot_do_datafusion_does() {
    let shelf = shelf();
    let mut split = shelf.split();
    split.pieces.retain(|piece| piece.key == "names.csv");
    // Text is read to its end, whatever its size is said to be.
    split.pieces[0].size = 1 << 30;
    let job = "[sql]\nquery = '''with recursive r(n) as (select 1 union all select n + 1 from r where n < 3)
        select r.n, t.name from r join t on r.n = t.n order by 1'''
        tables.t = { include = '*.csv', delimiter = ';' }\n[workers]\ncount = 2\n[output]\nformat = 'csv'\n";
    assert_eq!(engine::choose_over(&spec(job), &split).engine, Engine::Ballista);
    let output = shelf.run_over(split, job, None).await.unwrap();
    assert_eq!(std::fs::read_to_string(&output.files[0].path).unwrap(), "n,name\n1,one\n2,two\n");
}
