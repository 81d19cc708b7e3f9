//! One suite over S3 servers that no one here wrote, and over this project's own. What each of them does otherwise than
//! S3 is written down in `docs/s3-servers.md`.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

mod servers;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{
        BucketVersioningStatus, ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart,
        VersioningConfiguration,
    },
};
use futures::{StreamExt, stream};
use servers::{Certificate, Server};
use support::{Cluster, Outcome, Terminal, bytes, files};
use tempfile::TempDir;

/// A bucket on a server, and a volume.
struct Bench<'a> {
    server: &'a Server,
    client: Client,
    bucket: String,
    volume: TempDir,
    /// Lends its environment.
    cluster: Cluster,
}

impl<'a> Bench<'a> {
    async fn new(server: &'a Server, bucket: &str) -> Self {
        let client = server.client(None);
        client.create_bucket().bucket(bucket).send().await.unwrap();
        let (volume, cluster) = (TempDir::new().unwrap(), Cluster::start().await);
        Self { server, client, bucket: bucket.to_owned(), volume, cluster }
    }

    async fn put(&self, key: &str, content: impl Into<ByteStream>) {
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(content.into());
        put.send().await.unwrap_or_else(|error| panic!("{}: {key}: {error:?}", self.server.name));
    }

    async fn remove(&self, key: &str) {
        self.client.delete_object().bucket(&self.bucket).key(key).send().await.unwrap();
    }

    fn terminal(&self) -> Terminal {
        self.cluster.with_env("AWS_ENDPOINT_URL_S3", &self.server.endpoint).on_volume(self.volume.path())
    }

    fn stage(&self) -> Outcome {
        self.terminal().forebay(["dataset", "stage", &format!("s3://{}", self.bucket), "--name", "d", "--json"])
    }

    fn data(&self) -> PathBuf {
        let dataset = self.volume.path().join("datasets/d");
        let latest = std::fs::read_to_string(dataset.join("refs/latest")).unwrap();
        dataset.join("snapshots").join(latest).join("data")
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.data().join(path)).unwrap()
    }

    async fn put_parts(&self, key: &str, content: &[u8], algorithm: ChecksumAlgorithm, kind: ChecksumType) {
        let (client, bucket) = (&self.client, &self.bucket);
        let created = client.create_multipart_upload().bucket(bucket).key(key);
        let created = created.checksum_algorithm(algorithm.clone()).checksum_type(kind.clone()).send().await.unwrap();
        let id = created.upload_id().unwrap();
        let mut parts = Vec::new();
        for (number, part) in (1..).zip(content.chunks(8 << 20)) {
            let sent = client.upload_part().bucket(bucket).key(key).upload_id(id).part_number(number);
            let sent = sent.checksum_algorithm(algorithm.clone()).body(part.to_vec().into()).send().await.unwrap();
            let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned));
            let part = part.set_checksum_crc32_c(sent.checksum_crc32_c().map(str::to_owned));
            let part = part.set_checksum_sha256(sent.checksum_sha256().map(str::to_owned));
            let part = part.set_checksum_crc32(sent.checksum_crc32().map(str::to_owned));
            parts.push(part.set_checksum_crc64_nvme(sent.checksum_crc64_nvme().map(str::to_owned)).build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let done = client.complete_multipart_upload().bucket(bucket).key(key).upload_id(id);
        done.multipart_upload(parts).checksum_type(kind).send().await.unwrap();
    }
}

/// More objects than a page of a listing has, and then only what has changed.
async fn stages_what_is_there_and_then_what_has_changed(server: &Server) {
    let bench = Bench::new(server, "many").await;
    let puts = (0..1100).map(|n| (format!("p/{}/{n:04}", n % 7), format!("object {n}")));
    stream::iter(puts).for_each_concurrent(8, async |(key, content)| bench.put(&key, content.into_bytes()).await).await;
    let staged = bench.stage().json(0);
    assert_eq!((&staged["objects"], &staged["fetched_objects"]), (&1100.into(), &1100.into()));
    for n in 0..1100 {
        assert_eq!(bench.read(&format!("p/{}/{n:04}", n % 7)), format!("object {n}").into_bytes());
    }
    let again = bench.stage().json(0);
    assert_eq!((&again["snapshot"], &again["fetched_objects"]), (&staged["snapshot"], &0.into()));
    bench.put("p/0/0007", b"changed".to_vec()).await;
    bench.remove("p/1/0008").await;
    let changed = bench.stage().json(0);
    assert_eq!((&changed["objects"], &changed["fetched_objects"]), (&1099.into(), &1.into()));
    assert_eq!(bench.read("p/0/0007"), b"changed");
    bench.terminal().forebay(["dataset", "verify", "d", "--full"]).code(0);
}

async fn keeps_keys_that_are_no_paths(server: &Server) {
    let bench = Bench::new(server, "odd").await;
    let mut keys = server.can.odd_keys.to_vec();
    keys.sort_unstable();
    for key in &keys {
        bench.put(key, key.as_bytes().to_vec()).await;
    }
    bench.stage().code(0);
    let shown = bench.terminal().forebay(["dataset", "show", "d", "--objects", "--json"]).json(0);
    let objects = shown["objects"].as_array().unwrap();
    assert_eq!(objects.iter().map(|object| object["key"].as_str().unwrap()).collect::<Vec<_>>(), keys);
    for object in objects {
        assert_eq!(bench.read(object["path"].as_str().unwrap()), object["key"].as_str().unwrap().as_bytes());
    }
}

async fn fetches_large_objects_in_ranges(server: &Server) {
    let bench = Bench::new(server, "large").await;
    let content = bytes(1, (41 << 20) + 7);
    bench.put("large", content.clone()).await;
    bench.put("empty", Vec::new()).await;
    bench.stage().code(0);
    assert!(bench.read("large") == content && bench.read("empty").is_empty());
}

/// The object becomes another one of the same size at some moment of the staging.
async fn never_mixes_two_versions(server: &Server) {
    let bench = Bench::new(server, "changing").await;
    let (old, new) = (vec![b'o'; 40 << 20], vec![b'n'; 40 << 20]);
    for attempt in 0..3 {
        bench.put("large", old.clone()).await;
        let stage = ["dataset", "stage", "s3://changing", "--name", "d"];
        let staging = bench.terminal().start(stage);
        // The moment of the change; a server of others tells no event.
        tokio::time::sleep(std::time::Duration::from_millis(100 + 150 * attempt)).await;
        bench.put("large", new.clone()).await;
        let outcome = staging.outcome();
        if outcome.code != Some(0) {
            assert!(outcome.code(4).stderr.contains("`large`"));
            continue;
        }
        let held = bench.read("large");
        assert!(held == old || held == new, "old and new bytes in one object");
        bench.stage().code(0);
        assert!(bench.read("large") == new);
    }
}

async fn keeps_to_checksums_of_wholes_and_of_parts(server: &Server) {
    if !server.can.checksums {
        return;
    }
    let bench = Bench::new(server, "checksums").await;
    use ChecksumAlgorithm::{Crc32, Crc32C, Crc64Nvme, Sha1, Sha256};
    let (small, large) = (bytes(2, 70_000), bytes(3, 20 << 20));
    for algorithm in [Crc32, Crc32C, Crc64Nvme, Sha1, Sha256] {
        let put = bench.client.put_object().bucket("checksums").key(algorithm.as_str());
        put.checksum_algorithm(algorithm).body(small.clone().into()).send().await.unwrap();
    }
    bench.put_parts("composite-crc32c", &large, Crc32C, ChecksumType::Composite).await;
    bench.put_parts("composite-sha256", &large, Sha256, ChecksumType::Composite).await;
    bench.put_parts("whole-crc64nvme", &large, Crc64Nvme, ChecksumType::FullObject).await;
    bench.stage().code(0);
    for path in files(&bench.data()) {
        let held = std::fs::read(&path).unwrap();
        assert!(held == small || held == large, "{}", path.display());
    }
    assert_eq!(files(&bench.data()).len(), 8);
}

async fn takes_the_latest_version(server: &Server) {
    if !server.can.versions {
        return;
    }
    let bench = Bench::new(server, "versions").await;
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let versioning = bench.client.put_bucket_versioning().bucket("versions").versioning_configuration(enabled);
    versioning.send().await.unwrap();
    for content in ["first", "other"] {
        bench.put("x", content.as_bytes().to_vec()).await;
        bench.stage().code(0);
        assert_eq!(bench.read("x"), content.as_bytes());
    }
    bench.put("y", b"y".to_vec()).await;
    bench.remove("x").await;
    let staged = bench.stage().json(0);
    assert_eq!((&staged["objects"], &staged["fetched_objects"]), (&1.into(), &1.into()));
}

async fn says_who_was_denied_and_what_is_not_there(server: &Server) {
    let bench = Bench::new(server, "locked").await;
    bench.put("x", b"1".to_vec()).await;
    let absent = bench.terminal().forebay(["dataset", "stage", "s3://is-not-there"]).code(3);
    assert!(absent.stderr.contains("`is-not-there` does not exist"), "{}", absent.stderr);
    if server.can.signatures {
        let denied = bench.terminal().env("AWS_SECRET_ACCESS_KEY", "wrong");
        let denied = denied.forebay(["dataset", "stage", "s3://locked"]).code(4);
        assert!(denied.stderr.contains("denied"), "{}", denied.stderr);
    }
}

/// All of it over each server; a server is started once for all.
async fn conforms(server: Server) {
    says_who_was_denied_and_what_is_not_there(&server).await;
    stages_what_is_there_and_then_what_has_changed(&server).await;
    keeps_keys_that_are_no_paths(&server).await;
    fetches_large_objects_in_ranges(&server).await;
    never_mixes_two_versions(&server).await;
    keeps_to_checksums_of_wholes_and_of_parts(&server).await;
    takes_the_latest_version(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_the_tests() {
    conforms(Server::own().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs what .ci/run installs"]
async fn ministack() {
    conforms(Server::ministack()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs what .ci/run installs"]
async fn rclone() {
    conforms(Server::rclone(None, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs what .ci/run installs"]
async fn without_credentials() {
    for server in [Server::rclone(None, true), Server::ministack()] {
        let bench = Bench::new(&server, "public").await;
        bench.put("x", b"1".to_vec()).await;
        let terminal = bench.terminal().without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
        terminal.forebay(["dataset", "stage", "s3://public", "--name", "d", "--anonymous"]).code(0);
        assert_eq!(bench.read("x"), b"1");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs what .ci/run installs"]
async fn over_tls_with_a_certificate_of_ones_own() {
    let certificate = Certificate::new();
    let server = Server::rclone(Some(&certificate), false);
    let client = server.client(Some(&certificate));
    client.create_bucket().bucket("tls").send().await.unwrap();
    let content = bytes(4, 20 << 20);
    client.put_object().bucket("tls").key("large").body(content.clone().into()).send().await.unwrap();
    client.put_object().bucket("tls").key("small").body(b"1".to_vec().into()).send().await.unwrap();
    let cluster = Cluster::start().await;
    let stage = ["dataset", "stage", "s3://tls"];
    let refused = cluster.with_env("AWS_ENDPOINT_URL_S3", &server.endpoint).forebay(stage).code(4);
    assert!(refused.stderr.contains("ertificate"), "{}", refused.stderr);
    let bundle = certificate.path("cert.pem").display().to_string();
    let trusting = cluster.with_env("AWS_ENDPOINT_URL_S3", &server.endpoint).env("AWS_CA_BUNDLE", &bundle);
    trusting.forebay(stage).code(0);
    assert!(std::fs::read(cluster.data("tls").join("large")).unwrap() == content);
    assert_eq!(std::fs::read(cluster.data("tls").join("small")).unwrap(), b"1");
}
