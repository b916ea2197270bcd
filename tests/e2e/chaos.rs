//! A short run of the chaos that `cargo xtask chaos` makes for as long as one likes.

use std::time::Duration;

use crate::stack::millrace;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_of_random_faults_leaves_both_sides_equal() {
    let folder = millrace_devstack::temporary_dir().unwrap();
    let options = millrace_chaos::Options {
        program: millrace().to_owned(),
        folder: folder.path().to_owned(),
        seed: 12,
        length: Duration::from_secs(20),
        tells: false,
        hosts: false,
    };
    let outcome = millrace_chaos::run(&options).await.unwrap();
    assert!(outcome.wrong.is_empty(), "{outcome}");
    assert!(outcome.comparisons >= 3 && outcome.transactions > 0, "{outcome}");
}
