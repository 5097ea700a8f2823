"""What the noise of a folder of images is, measured from the images alone, and which method is made for it."""
