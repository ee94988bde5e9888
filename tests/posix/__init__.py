"""POSIX acceptance tests: what a program may expect of any directory.

Each test gets a fresh directory (fixture `mnt`) and runs with it as its working directory, so that
names in the tests are relative. The suite passes on ext4 and on tmpfs, as root; nothing in it
knows which file system it runs on.
"""
