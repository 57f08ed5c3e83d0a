"""The service that sells: offers, payments, deliveries and disputes, with a journal that only grows."""
