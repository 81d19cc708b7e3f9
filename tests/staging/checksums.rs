//! Every checksum that S3 keeps: right ones are accepted, wrong ones refused by name.

use forebay::s3_server::{Algorithm, Faults, Upload};

use crate::support::{Cluster, bytes};

const LARGE: usize = (17 << 20) + 12345;
const PART: usize = 6 << 20;

/// Small and large objects, with each checksum of the whole and of the parts that S3 gives; the ETag tells nothing.
fn uploads() -> Vec<(String, Algorithm, Upload)> {
    let mut uploads = Vec::new();
    for algorithm in Algorithm::ALL {
        let name = |what: &str| format!("{what}-{}", algorithm.name());
        let small = Upload::new(bytes(1, 100_000)).checksum(algorithm).encrypted();
        let large = Upload::new(bytes(2, LARGE)).in_parts(PART).checksum(algorithm).encrypted();
        uploads.push((name("small"), algorithm, small.clone()));
        let is_sha = matches!(algorithm, Algorithm::Sha1 | Algorithm::Sha256);
        if !is_sha {
            uploads.push((name("large"), algorithm, large.clone()));
        }
        if algorithm != Algorithm::Crc64Nvme {
            uploads.push((name("large-composite"), algorithm, large.composite()));
            uploads.push((name("small-composite"), algorithm, small.in_parts(30_000).composite()));
        }
    }
    uploads
}

#[tokio::test(flavor = "multi_thread")]
async fn right_checksums_are_accepted() {
    let cluster = Cluster::start().await;
    let uploads = uploads();
    for (key, _, upload) in &uploads {
        cluster.s3.upload("data", key, upload.clone());
    }
    // More parts than GetObjectAttributes lists at once.
    let many = Upload::new(bytes(3, 1_100_000)).in_parts(1000).checksum(Algorithm::Crc32c).composite();
    cluster.s3.upload("data", "many-parts", many);
    let staged = cluster.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert_eq!(staged["objects"], uploads.len() + 1);
    for (key, ..) in &uploads {
        let should = if key.starts_with("small") { bytes(1, 100_000) } else { bytes(2, LARGE) };
        assert!(std::fs::read(cluster.data("data").join(key)).unwrap() == should, "{key}");
    }
    assert!(std::fs::read(cluster.data("data").join("many-parts")).unwrap() == bytes(3, 1_100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_checksums_are_refused_by_name() {
    let cluster = Cluster::start().await;
    let uploads = uploads();
    for (key, _, upload) in &uploads {
        cluster.s3.upload("data", key, upload.clone().damaged_at(70_000));
    }
    for (key, algorithm, _) in &uploads {
        let error = cluster.forebay(["dataset", "stage", "s3://data", "--name", key, "--include", key]).code(4);
        assert!(error.stderr.contains(&format!("`{key}`")), "{key}: {}", error.stderr);
        assert!(error.stderr.replace('-', "").to_uppercase().contains(algorithm.name()), "{key}: {}", error.stderr);
        cluster.forebay(["dataset", "show", key]).code(3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_md5_in_the_etag_is_compared_and_one_of_kms_is_not() {
    let cluster = Cluster::start().await;
    let plain = Upload::new(bytes(4, 1000)).without_checksum();
    cluster.s3.upload("data", "plain", plain.clone());
    cluster.s3.upload("data", "kms", plain.clone().encrypted());
    cluster.s3.upload("data", "kms-large", Upload::new(bytes(5, LARGE)).without_checksum().encrypted());
    cluster.s3.upload("data", "kms-checked", plain.clone().checksum(Algorithm::Sha256).encrypted());
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert!(std::fs::read(cluster.data("data").join("kms-large")).unwrap() == bytes(5, LARGE));
    cluster.s3.upload("data", "damaged", plain.damaged_at(500));
    let error = cluster.forebay(["dataset", "stage", "s3://data"]).code(4);
    assert!(error.stderr.contains("`damaged`") && error.stderr.contains("MD5"), "{}", error.stderr);
}

/// As `rclone serve s3` does it.
#[tokio::test(flavor = "multi_thread")]
async fn the_checksum_of_the_whole_is_not_held_against_a_range() {
    let cluster = Cluster::start().await;
    cluster.s3.upload("data", "large", Upload::new(bytes(6, LARGE)).checksum(Algorithm::Crc32));
    cluster.s3.set_faults(Faults { checksum_with_ranges: true, ..Faults::default() });
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert!(std::fs::read(cluster.data("data").join("large")).unwrap() == bytes(6, LARGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_kept_and_old_bytes_never_come_for_new_ones() {
    let cluster = Cluster::start().await;
    cluster.s3.make_versioned("data");
    let first = cluster.s3.upload("data", "x", Upload::new("first")).unwrap();
    cluster.s3.put("data", "y", "y");
    let shown = |version: &str| {
        let shown = cluster.forebay(["dataset", "show", "data", "--objects", "--json"]).json(0);
        let object = shown["objects"].as_array().unwrap().iter().find(|object| object["key"] == "x").unwrap().clone();
        assert_eq!(object["version_id"], version, "{object}");
    };
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    shown(&first);
    let second = cluster.s3.upload("data", "x", Upload::new("other")).unwrap();
    let staged = cluster.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert_eq!(staged["fetched_objects"], 1);
    assert_eq!(std::fs::read(cluster.data("data").join("x")).unwrap(), b"other");
    shown(&second);
    cluster.s3.remove("data", "x");
    let staged = cluster.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert_eq!((&staged["objects"], &staged["fetched_objects"]), (&1.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_another_region_is_found() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "1");
    cluster.s3.move_to("data", "eu-central-1");
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert_eq!(std::fs::read(cluster.data("data").join("x")).unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_bucket_needs_no_credentials() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "1");
    let terminal = || cluster.terminal().without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
    let error = terminal().forebay(["dataset", "stage", "s3://data", "--anonymous"]).code(4);
    assert!(error.stderr.contains("AccessDenied"), "{}", error.stderr);
    cluster.s3.make_public("data");
    terminal().forebay(["dataset", "stage", "s3://data", "--anonymous"]).code(0);
}
