//! Staging some columns: what is shared, what changes under way, and what there is room for.

use std::{fs, path::Path};

use forebay::s3_server::Faults;

use crate::{
    support::Cluster,
    table::{NAMES, STAGE, cluster, fetched, held, wide},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_enough_is_shared_and_the_rest_is_fetched() {
    let cluster = cluster().await;
    let stage = |columns: Option<&str>| {
        let staged = match columns {
            Some(columns) => cluster.forebay(["dataset", "stage", "s3://data", "--columns", columns, "--json"]),
            None => cluster.forebay(["dataset", "stage", "s3://data", "--json"]),
        };
        let staged = staged.json(0);
        (staged["fetched_objects"].as_u64().unwrap(), staged["fetched_bytes"].as_u64().unwrap())
    };
    assert_eq!(stage(Some(NAMES)).0, 3);
    cluster.s3.put("data", "w/3.parquet", wide(3));
    assert_eq!(stage(Some(NAMES)), (1, fetched(&wide(3))), "of the others the same is held");
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    cluster.s3.put("data", "w/4.parquet", wide(4));
    assert_eq!(stage(Some("c04,c30")).0, 1, "of the others more is held");
    cluster.s3.put("data", "w/5.parquet", wide(5));
    assert_eq!(stage(Some("c04,c05")).0, 5, "of the others less is held");
    assert_eq!(stage(None).0, 5, "of the others no whole is held");
    cluster.s3.put("data", "w/6.parquet", wide(6));
    assert_eq!(stage(Some(NAMES)), (1, fetched(&wide(6))), "of the others all is held");
    cluster.s3.put("data", "w/7.parquet", wide(7));
    assert_eq!(stage(None).0, 2, "of one a part is held");
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    // The first snapshot is the latest again, and holds parts alone; the newest whole one holds what it does not.
    (3..8).for_each(|n| cluster.s3.remove("data", &format!("w/{n}.parquet")));
    assert_eq!(stage(Some(NAMES)), (0, 0));
    cluster.s3.put("data", "w/8.parquet", wide(8));
    assert_eq!(stage(None), (1, wide(8).len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_range_is_fetched_again_and_nothing_else() {
    let cluster = cluster().await;
    let staged = cluster.forebay(STAGE).json(0);
    let data = Path::new(staged["path"].as_str().unwrap()).join("data/w");
    let whole: Vec<_> = ["1.parquet", "2.parquet"].map(|name| fs::read(data.join(name)).unwrap()).into();
    let mut flipped = whole[0].clone();
    // Of the file's end, which is always held.
    let last = flipped.len() - 1000;
    flipped[last] ^= 1;
    fs::write(data.join("1.parquet"), flipped).unwrap();
    fs::remove_file(data.join("2.parquet")).unwrap();
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(4);
    let before = cluster.s3.counts().bytes();
    cluster.forebay(["dataset", "verify", "data", "--full", "--repair"]).code(0);
    let sent = cluster.s3.counts().bytes() - before;
    let held: u64 = [1, 2].iter().flat_map(|n| held(&wide(*n))).map(|range| range.end - range.start).sum();
    assert_eq!(sent, held, "the ranges that are held");
    assert!(fs::read(data.join("1.parquet")).unwrap() == whole[0]);
    assert!(fs::read(data.join("2.parquet")).unwrap() == whole[1]);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
}

/// Stages while an object becomes another one after so many answers; the file, as it is held.
async fn staged_under_a_change(after: u64, versions: bool) -> Vec<u8> {
    let cluster = Cluster::start().await;
    if versions {
        cluster.s3.make_versioned("data");
    }
    cluster.s3.put("data", "w/1.parquet", wide(1));
    let replaced_after = [("w/1.parquet".to_owned(), (after, wide(9)))].into();
    cluster.s3.set_faults(Faults { replaced_after, ..Faults::default() });
    let staged = cluster.forebay(STAGE).json(0);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    assert_eq!(cluster.s3.object("data", "w/1.parquet").unwrap(), wide(9), "it has changed");
    fs::read(Path::new(staged["path"].as_str().unwrap()).join("data/w/1.parquet")).unwrap()
}

/// Whether a file is another one, as far as that is held.
fn is_of(file: &[u8], whole: &[u8]) -> bool {
    let mut held = held(whole).into_iter().map(|range| range.start as usize..range.end as usize);
    file.len() == whole.len() && held.all(|range| file[range.clone()] == whole[range])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_under_way_is_one_of_both_in_all_of_its_ranges() {
    for after in [1, 2, 5] {
        let file = staged_under_a_change(after, false).await;
        assert!(is_of(&file, &wide(9)) && !is_of(&file, &wide(1)), "after {after} answers");
    }
    // Where the bucket keeps versions, what was begun is gone on with.
    assert!(is_of(&staged_under_a_change(2, true).await, &wide(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_needed_for_what_is_held_and_not_for_the_holes() {
    let cluster = cluster().await;
    let needed = fetched(&wide(1)) * 2;
    let quota = |bytes: u64| cluster.forebay(["volume", "set", "--quota", &format!("{bytes}B")]).code(0);
    cluster.forebay(["dataset", "stage", "s3://data", "--include", "names.csv", "--name", "names"]).code(0);
    quota(needed / 2);
    let refused = cluster.forebay(STAGE).code(4);
    assert!(refused.stdout.contains("quota"), "{}", refused.stdout);
    cluster.forebay(["dataset", "show", "data"]).code(3);
    assert!(cluster.left_behind("data").is_empty());
    quota(needed + 10_000);
    let held = cluster.forebay(STAGE).json(0)["held_bytes"].as_u64().unwrap();
    assert!(held < needed + 1000, "{held} of {needed}");
    // So much is counted from then on, and the whole does not fit.
    quota(held * 2);
    cluster.s3.put("data", "w/3.parquet", wide(3));
    cluster.forebay(STAGE).code(0);
    cluster.forebay(["dataset", "stage", "s3://data"]).code(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etags_no_range_is_taken() {
    let cluster = cluster().await;
    cluster.s3.set_faults(Faults { list_without_etags: true, ..Faults::default() });
    let staged = cluster.forebay(STAGE).json(0);
    assert!(staged["columns"].is_null() && staged["held_bytes"] == staged["bytes"], "{staged}");
}
