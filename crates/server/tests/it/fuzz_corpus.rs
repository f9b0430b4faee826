//! Runs the fuzz targets of the server and of the edge's rules over their corpora and over
//! mutations of them.

use dormer_testkit::run_over_corpus;

#[test]
fn routes() {
    run_over_corpus("server_route", dormer_server::fuzz_targets::fuzz_route);
}

#[test]
fn compressed_uploads() {
    run_over_corpus("server_codec", dormer_server::fuzz_targets::fuzz_codec);
}

#[test]
fn headers_of_proxies() {
    run_over_corpus("server_forwarded", dormer_server::fuzz_targets::fuzz_forwarded);
}

#[test]
fn forms_of_pages() {
    run_over_corpus("server_form", dormer_server::fuzz_targets::fuzz_form);
}

#[test]
fn logs_on_pages() {
    run_over_corpus("server_log", dormer_server::fuzz_targets::fuzz_log);
}

#[test]
fn requests_at_the_edge() {
    run_over_corpus("edge_request", dormer_edge::fuzz_targets::fuzz_request);
}

#[test]
fn pages_at_the_edge() {
    run_over_corpus("edge_page", dormer_edge::fuzz_targets::fuzz_page);
}

#[test]
fn tokens_at_the_edge() {
    run_over_corpus("edge_authorization", dormer_edge::fuzz_targets::fuzz_authorization);
}

#[test]
fn documents_at_the_edge() {
    run_over_corpus("edge_documents", dormer_edge::fuzz_targets::fuzz_documents);
}
