//! Coordinators that are not reached where they listen, and those that are not reached at all.

use std::{
    io,
    net::{TcpListener, TcpStream},
    thread,
};

use serde_json::Value;

use crate::support::{Cluster, copies, free_port, link, processes::Running, published};

struct Fixture {
    cluster: Cluster,
    job: String,
}

impl Fixture {
    /// Two tasks for workers that the test starts.
    async fn new(workers: &str) -> Self {
        let cluster = Cluster::start().await;
        cluster.put_contents("data", 2);
        let text = format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = 'cat $(cat $FOREBAY_INPUTS) > \
             $FOREBAY_OUTPUT_DIR/x'\n[workers]\nfleet = 'external'\n{workers}\n"
        );
        let job = cluster.file("job.toml", &text);
        Self { cluster, job }
    }

    /// A coordinator that says how it is reached; and how.
    fn coordinate(&self, listen: &str, advertise: &str) -> (Running, Value) {
        let terminal = self.cluster.terminal();
        let arguments = ["--listen", listen, "run", &self.job, "--id", "r", "--json"];
        let terminal = if advertise.is_empty() { terminal } else { terminal.env("FOREBAY_ADVERTISE", advertise) };
        let running = terminal.start(arguments);
        (running, link(&self.cluster.run_dir("r"), 1))
    }

    fn work(&self) -> Running {
        self.cluster.terminal().start(["worker", "--run", "r", "--slots", "2"])
    }

    #[track_caller]
    fn check(&self, running: Running) {
        let result = running.outcome().json(0);
        assert_eq!(result["tasks"]["succeeded"], 2, "{result}");
        assert_eq!(published(&self.cluster.run_dir("r").join("output")), copies(2));
    }
}

/// Carries connections to another port, as a NAT does that forwards one; where it listens.
fn forward(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for from in listener.incoming() {
            let (from, to) = (from.unwrap(), TcpStream::connect(("127.0.0.1", to)).unwrap());
            for (mut source, mut sink) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
                thread::spawn(move || {
                    let _ = io::copy(&mut source, &mut sink);
                    let _ = sink.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_by_the_addresses_that_are_advertised_in_turn() {
    let fixture = Fixture::new("link = 'tcp'").await;
    let (port, nobody) = (free_port(), free_port());
    let outside = forward(port);
    let advertise = format!("127.0.0.1:{nobody},127.0.0.1:{outside}");
    let (running, link) = fixture.coordinate(&format!("127.0.0.1:{port}"), &advertise);
    let expected = [nobody, outside].map(|port| Value::from(format!("https://127.0.0.1:{port}")));
    assert_eq!(link["addresses"].as_array().unwrap()[..], expected);
    fixture.work().outcome().code(0);
    fixture.check(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_literal_address_of_ipv6_is_listened_at_and_reached() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this host has no IPv6");
        return;
    }
    for (listen, advertise) in [("::1", ""), ("::", "[::1]")] {
        let fixture = Fixture::new("link = 'tcp'").await;
        let (running, link) = fixture.coordinate(listen, advertise);
        assert!(link["addresses"][0].as_str().unwrap().starts_with("https://[::1]:"), "{link}");
        fixture.work().outcome().code(0);
        fixture.check(running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_reaches_nobody_says_what_it_tried_or_writes_letters() {
    let nobody = format!("127.0.0.1:{},no-such-host.invalid:7000", free_port());
    let fixture = Fixture::new("link = 'tcp'").await;
    let (running, _) = fixture.coordinate("127.0.0.1", &nobody);
    let refused = fixture.work().outcome().code(4);
    for part in [
        &format!("https://{}: Connection refused", nobody.split(',').next().unwrap()),
        "https://no-such-host.invalid:7000: ",
        "--advertise",
        "link = \"files\"",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    drop(running);
    // Where the job says nothing of links, others start its workers.
    let fixture = Fixture::new("").await;
    let (running, link) = fixture.coordinate("127.0.0.1", &nobody);
    assert_eq!(link["mail"], true);
    let worked = fixture.work().outcome().code(0);
    assert!(worked.stderr.contains("letters on the volume are slower, and do"), "{}", worked.stderr);
    fixture.check(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_cannot_listen_says_why_and_leaves_no_run() {
    let fixture = Fixture::new("").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let cases = [
        (taken.to_string(), format!("another program has port {}", taken.port())),
        ("192.0.2.1".to_owned(), "this host has no such address".to_owned()),
    ];
    for (listen, why) in cases {
        let refused = fixture.cluster.forebay(["--listen", &listen, "run", &fixture.job, "--id", "r"]).code(4);
        let text = refused.words();
        assert!(text.contains(&listen) && text.contains(&why), "{}", refused.stderr);
        assert!(!fixture.cluster.run_dir("r").exists());
    }
    for (name, value) in [("--listen", "head"), ("--advertise", "https://head"), ("--advertise", "0.0.0.0")] {
        let refused = fixture.cluster.forebay([name, value, "run", &fixture.job]).code(2);
        assert!(refused.stderr.contains(value), "{}", refused.stderr);
    }
}
