"""Run a script that sees a folder as Azure ML mounts it: flat blob storage behind FUSE.

    python devops/loopback/blob_mount.py FOLDER SCRIPT [ARGUMENT ...]

Which driver a cluster mounts by is not for us to say (blobfuse 1 and 2, rslex), so below FOLDER
each call does the least that one of them does, and what works here works with all of them.
- A folder is not renamed: EIO (Azure/azure-storage-fuse issues 798 and 1285, microsoft/hi-ml pull
  request 258). blobfuse 2 renames its files one by one.
- A file is renamed by a copy and a deletion, others may see both or half a copy ("Non-atomic
  renames" in BlobFuse and Linux file systems compared, azure-storage-fuse issue 964).
- Nothing is renamed into the mount or out of it, as with every mount: EXDEV.
- A folder is a part of the names of its files and goes with the last of them (apache/arrow issue
  40074). A marker blob may keep it; nobody promises one.
- No links: ENOSYS (hard links: treeverse/dvc issues 2594 and 2738 on Azure ML, azure-storage-fuse
  issue 599; symbolic links: MicrosoftDocs/azure-docs issue 42581, blobfuse 1's README).
- fsync of a folder is refused: EINVAL. This is stricter than the sources: blobfuse 1 has no fsync,
  and Linux makes a success of that. It promises nothing.

A mount by FUSE itself would need rights that not every machine gives. So this wraps the functions
of `os` before the script imports anything; programs that the script starts are not covered.
"""
import argparse
import errno
import os
import stat
import sys


class BlobMount:
    """The functions of `os` that behave otherwise below the folder."""

    def __init__(self, folder):
        self.folder = os.path.realpath(folder)
        self._rename, self._unlink, self._fsync = os.rename, os.unlink, os.fsync
        self._link, self._symlink = os.link, os.symlink

    def install(self):
        os.rename = os.replace = self.rename
        os.unlink = os.remove = self.unlink
        os.link, os.symlink, os.fsync = self.link, self.symlink, self.fsync
        # Up to Python 3.9 it keeps the functions that it found.
        sys.modules.pop('pathlib', None)

    def _blob(self, path, dir_fd=None):
        """The full path if it is below the folder, else None."""
        path = os.fsdecode(path)
        if dir_fd is not None:
            path = os.path.join(os.readlink(f'/proc/self/fd/{dir_fd}'), path)
        parent, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(parent), name)
        return path if path.startswith(self.folder + os.sep) else None

    def rename(self, src, dst):
        import shutil
        source, goal = self._blob(src), self._blob(dst)
        if not source and not goal:
            self._rename(src, dst)
        elif not source or not goal:
            raise _error(errno.EXDEV, src, None, dst)
        elif os.path.isdir(source):
            raise _error(errno.EIO, src, None, dst)
        else:
            shutil.copyfile(source, goal)
            self.unlink(source)

    def unlink(self, path, *, dir_fd=None):
        blob = self._blob(path, dir_fd)
        self._unlink(path, dir_fd=dir_fd)
        folder = os.path.dirname(blob) if blob else self.folder
        while folder != self.folder and not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)

    def link(self, src, dst, **options):
        if self._blob(src) or self._blob(dst):
            raise _error(errno.ENOSYS, src, None, dst)
        self._link(src, dst, **options)

    def symlink(self, src, dst, *options, **named):
        if self._blob(dst):
            raise _error(errno.ENOSYS, src, None, dst)
        self._symlink(src, dst, *options, **named)

    def fsync(self, fd):
        number = fd if isinstance(fd, int) else fd.fileno()
        if stat.S_ISDIR(os.fstat(number).st_mode) and self._blob('', number):
            raise _error(errno.EINVAL)
        self._fsync(number)


def _error(number, *names):
    return OSError(number, os.strerror(number), *names)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', help='folder that is the mount')
    parser.add_argument('script', help='Python script to run')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its arguments')
    args = parser.parse_args(argv)
    BlobMount(args.folder).install()
    import runpy
    sys.argv = [args.script] + args.arguments
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))
    runpy.run_path(args.script, run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())
