//! `dormer-worker-bindgen MODULE FOLDER`: wasm-bindgen, of exactly the version that the module was
//! built with.

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder] = arguments.as_slice() else {
        eprintln!("usage: dormer-worker-bindgen MODULE FOLDER");
        return ExitCode::from(2);
    };
    match run(module, folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{module} cannot be bound: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(module: &str, folder: &str) -> Result<(), Box<dyn std::error::Error>> {
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .typescript(false)
        // Names of functions are half of the module, and nobody reads them there.
        .remove_name_section(true)
        .remove_producers_section(true)
        // After a trap the instance is thrown away and another one made, in place (src/index.js).
        .reset_state_function(true)
        .generate(folder)?;
    Ok(())
}
