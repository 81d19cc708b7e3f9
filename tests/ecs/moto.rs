//! The requests as somebody else's server takes them: moto's, which knows the protocol and runs nothing.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use forebay_coordinator::fleet::engine::{Call, Engine, Tag};

use crate::{
    double::client,
    engine::{EFS, engine},
    support::eventually,
};

struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs moto's server: .ci/run installs it"]
async fn another_server_takes_the_requests() {
    let dir = std::env::var("FOREBAY_TEST_SERVERS").expect("FOREBAY_TEST_SERVERS names a venv with moto[server]");
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let program = Path::new(&dir).join("bin/moto_server");
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let _moto = Moto(command.spawn().unwrap());
    eventually("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let client = client(&format!("http://127.0.0.1:{port}"));
    client.create_cluster().cluster_name("c").send().await.unwrap();
    let tag = Tag::of("v", &"r".parse().unwrap());
    let engine = engine(client, &tag, &format!("efs = {{ file_system = '{EFS}' }}"));
    let token = tag.token(&format!("{}-1-00000001", tag.as_str())).unwrap();
    let started = engine.start(&Call { token, count: 2, again: false }).await.unwrap();
    assert_eq!(started.members.len(), 2);
    let listed = engine.list(&started.members).await.unwrap();
    assert_eq!(listed.len(), 2);
    engine.stop(&started.members).await.unwrap();
}
