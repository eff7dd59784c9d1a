"""Published data sets and folders of photos, as samples."""
