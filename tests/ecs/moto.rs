//! The requests as somebody else's server takes them: moto's, which knows the protocol and runs nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use forebay_coordinator::fleet::engine::{Call, Engine, Tag};

use crate::{
    double::client,
    engine::{EFS, engine_in},
    support::{eventually, free_port},
};

struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One of its own EC2's: it knows no others.
fn subnet(port: u16) -> String {
    let body = "Action=DescribeSubnets&Version=2016-11-15";
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: ec2.us-east-1.amazonaws.com\r\nConnection: close\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, rest) = answer.split_once("<subnetId>").unwrap_or_else(|| panic!("{answer}"));
    rest.split('<').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs moto's server: .ci/run installs it"]
async fn another_server_takes_the_requests() {
    let dir = std::env::var("FOREBAY_TEST_SERVERS").expect("FOREBAY_TEST_SERVERS names a venv with moto[server]");
    let port = free_port();
    let program = Path::new(&dir).join("bin/moto_server");
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let _moto = Moto(command.spawn().unwrap());
    eventually("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let client = client(&format!("http://127.0.0.1:{port}"));
    client.create_cluster().cluster_name("c").send().await.unwrap();
    let tag = Tag::of("v", &"r".parse().unwrap());
    // It wants to be told of some, and any will do.
    let groups = "security_groups = ['sg-0123456789abcdef0']";
    let engine = engine_in(client, &tag, &subnet(port), &format!("efs = {{ file_system = '{EFS}' }}\n{groups}"));
    let token = tag.token(&format!("{}-1-00000001", tag.as_str())).unwrap();
    let started = engine.start(&Call { token, count: 2, again: false }).await.unwrap();
    assert_eq!(started.members.len(), 2);
    let listed = engine.list(&started.members).await.unwrap();
    assert_eq!(listed.len(), 2);
    engine.stop(&started.members).await.unwrap();
}
