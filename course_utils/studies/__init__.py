"""What the pages measure beside the large study (`course_utils.study`): one module a command, one result file each."""
