"""An open-loop load: requests leave at times fixed beforehand, whatever the answers do."""
