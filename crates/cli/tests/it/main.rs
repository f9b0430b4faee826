//! Every integration test of the `dormer` binary: one program, because each program costs a link.

mod binary;
mod doctor;
mod doctor_services;
mod endpoint;
mod machines;
mod secrets;
mod shell_files;
mod test_home;
mod traces;
