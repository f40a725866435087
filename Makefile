help:
	@echo todo
