//! A machine is suspended on a host with pages of one size, and goes on on a host with another.
//!
//! hosts: gicv3 -> 16k, 16k -> gicv3
//!
//! Each stop of the way is a module; what one leaves in the directory, the next one finds there.
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use rotifer_tests::{LOAD_DISK_BYTES, Look, Pager, VmBuilder, ask_load, copy_snapshot, empty_disk};
use tempfile::TempDir;

const SNAPSHOT: &str = "vm.snap";
const DISK: &str = "disk";

/// What all stops see.
fn luggage() -> PathBuf {
    std::env::var_os("ROTIFER_ROUTE").expect("./x test says where").into()
}

fn builder(disk: &Path) -> VmBuilder {
    VmBuilder::new().vcpus(2).drive("data", disk, false)
}

/// The size of the host's pages.
fn page_bytes() -> u64 {
    // SAFETY: asks for a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap()
}

mod stop_1 {
    use super::*;

    #[test]
    fn a_machine_under_load_is_suspended() {
        let place = TempDir::new().unwrap();
        let (disk, snapshot) = (place.path().join(DISK), place.path().join(SNAPSHOT));
        empty_disk(&disk, LOAD_DISK_BYTES);
        let vm = rotifer_tests::start_load(&builder(&disk), env!("CARGO_BIN_EXE_soak_load"));
        ask_load(&vm, Look::AtAll);
        vm.suspend(&snapshot, "Full");
        drop(vm);
        copy_snapshot(place.path(), &luggage());
        fs::copy(&disk, luggage().join(DISK)).unwrap();
        fs::write(luggage().join("pages"), page_bytes().to_string()).unwrap();
    }
}

mod stop_2 {
    use super::*;

    #[test]
    fn it_goes_on_with_all_that_it_had_and_can_be_suspended_again() {
        let before: u64 = fs::read_to_string(luggage().join("pages")).unwrap().parse().unwrap();
        println!("from pages of {before} bytes to pages of {}", page_bytes());
        let pager = Pager::start();
        for is_shared in [false, true] {
            let place = TempDir::new().unwrap();
            copy_snapshot(&luggage(), place.path());
            let (disk, snapshot) = (place.path().join(DISK), place.path().join(SNAPSHOT));
            fs::copy(luggage().join(DISK), &disk).unwrap();
            let restore = |snapshot: &Path| match is_shared {
                true => builder(&disk).restore_shared(snapshot, &pager),
                false => builder(&disk).restore(snapshot),
            };
            let vm = restore(&snapshot);
            ask_load(&vm, Look::AtAll);
            let again = place.path().join("again.snap");
            vm.suspend(&again, "Diff");
            drop(vm);
            ask_load(&restore(&again), Look::AtAll);
        }
    }
}
