//! The README's first command, where nothing is configured.

use crate::support::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_needs_nothing_and_shows_three_results() {
    // Of the cluster only the empty volume is used: no credentials, no endpoint.
    let cluster = Cluster::start().await;
    let terminal = || {
        let names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL_S3"];
        names.into_iter().fold(cluster.terminal(), |terminal, name| terminal.without_env(name))
    };
    let shown = terminal().forebay(["demo"]).code(0);
    for part in ["Hawaiian Airlines Inc.", "1272", "… and 19 rows more", "airports.csv", "104227 bytes"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    assert!(shown.stderr.contains("staged once, 549.45 KiB") && shown.stderr.contains("Try next:"), "{}", shown.stderr);
    let again = terminal().forebay(["demo", "--json"]).json(0);
    for run in again["runs"].as_array().unwrap() {
        assert_eq!((&run["state"], &run["staged"]["fetched_objects"]), (&"succeeded".into(), &0.into()));
    }
    assert_eq!(cluster.s3.counts().lists(), 0);
    // What it says to try next works once its server is gone.
    let last = again["runs"][2]["run"].as_str().unwrap();
    cluster.forebay(["runs", "show", last]).code(0);
    cluster.forebay(["dataset", "verify", "demo-flights", "--full"]).code(0);
    assert_eq!(cluster.forebay(["runs", "list", "--json"]).json(0)["runs"].as_array().unwrap().len(), 6);
}
