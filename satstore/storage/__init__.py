"""Durable bytes: files, folders and buckets, the commit log; names, files and pickles from outside."""
