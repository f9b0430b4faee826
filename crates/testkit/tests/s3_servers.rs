//! The S3 servers start, store, die and come back.

use dormer_testkit::services::{CephRgw, SeaweedFs};

#[test]
fn seaweedfs_comes_back_after_a_crash_and_after_a_stop() {
    let mut server = SeaweedFs::start();
    let bucket = server.new_bucket();
    server.access().put_object(&bucket, "a/b", "bytes");
    server.kill();
    server.restart();
    server.access().put_object(&bucket, "a/c", "bytes");
    server.stop();
    server.restart();
    server.access().put_object(&bucket, "a/d", "bytes");
}

#[test]
fn ceph_s_gateway_comes_back_after_a_crash_and_after_a_stop() {
    let mut server = CephRgw::start();
    let bucket = server.new_bucket();
    server.access().put_object(&bucket, "a/b", "bytes");
    server.kill();
    server.restart();
    server.access().put_object(&bucket, "a/c", "bytes");
    server.stop();
    server.restart();
    server.access().put_object(&bucket, "a/d", "bytes");
}
