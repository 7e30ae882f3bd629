import unittest
from pathlib import Path
from unittest import mock

from driver import qemu
from driver.qemu import WorkerFiles, command_line, share_of_processors


class Processors(unittest.TestCase):
    def test_workers_share_what_the_machine_has(self):
        for machine, workers, share in ((2, 1, 2), (2, 2, 1), (2, 3, 1), (1, 2, 1), (8, 2, 2), (8, 1, 2)):
            with mock.patch.object(qemu.os, "sched_getaffinity", return_value=set(range(machine))):
                self.assertEqual(share_of_processors("kvm", workers), share, (machine, workers))
                self.assertEqual(share_of_processors("tcg", workers), 1, (machine, workers))

    def test_a_worker_gets_its_share(self):
        files = WorkerFiles(Path("/image"), Path("/qemu"), Path("/payload"))
        for cpus in (1, 2):
            line = command_line(files, "tcg", Path("/run"), cpus=cpus)
            self.assertEqual(line[line.index("-smp") + 1], str(cpus))


if __name__ == "__main__":
    unittest.main()
