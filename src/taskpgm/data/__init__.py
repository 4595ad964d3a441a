"""Rows as files hold them: from files to conversations."""
