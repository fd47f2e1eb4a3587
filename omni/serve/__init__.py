"""The network floor: controller, workers, page and client."""
