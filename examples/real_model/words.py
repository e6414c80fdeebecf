"""Word lists of the payment sentences: names, wordings, dates and currencies."""

from __future__ import annotations


def split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = split_words("""
Abel Ada Adele Agnes Aisha Alan Alma Amir Amos Andrea Anika Anton Arthur Astrid Aurora Basil Beatriz Bianca Boris Brenda
Bruno Callum Camille Carla Cedric Chiara Clara Colin Cora Cyrus Dalia Damian Daphne Darius Delia Dexter Dina Dmitri Dora
Edgar Edith Elena Elias Elsa Emil Enzo Erica Esther Ethan Eva Fabian Farah Felix Fiona Flora Frank Freya Gavin Gemma
George Gilda Gloria Greta Gustav Hana Harold Hassan Hazel Hector Helga Henry Hilda Hugo Ida Ines Ingrid Irene Isaac Ivan
Jacob Jade Jasmin Jerome Joan Jonas Josef Judith Julia Kamal Karen Karim Katya Keith Kira Klaus Lara Lars Laszlo Leila
Leo Lidia Linus Lorna Louis Lucia Luka Mabel Magnus Malik Marco Maria Martha Mateo Maud Max Mei Milan Mina Miriam Mona
Nadia Naomi Nico Nina Noah Nora Olaf Olga Omar Oscar Otto Paolo Paula Pedro Petra Philip Priya Quentin Rafael Rania
Raymond Renata Rita Robin Rosa Rufus Ruth Sabine Samir Sandra Saul Selma Simon Sofia Stefan Susan Sven Tamara Tariq
Teresa Theo Tilda Tobias Tomas Una Ursula Vera Victor Viola Walter Wanda Wendy Xenia Yara Yasmin Yusuf Zelda Zoe
""")

SURNAMES = split_words("""
Abbott Adler Aguilar Ahmed Albrecht Allen Almeida Andersen Anderson Archer Arnold Austin Aziz Bailey Baker Baldwin
Banerjee Banks Barnes Barros Bauer Becker Bell Bellini Bennett Benson Bergman Bishop Black Blake Bloom Boateng Bonnet
Borg Bowman Boyd Bradley Brandt Brennan Brooks Brown Bryant Burke Bush Butler Byrd Cabral Caldwell Campbell Campos
Cardoso Carlson Carpenter Carter Castillo Chandra Chapman Chavez Chen Choi Clarke Cohen Cole Coleman Collins Conti Cook
Cooper Costa Coulter Cox Craig Crane Crawford Cross Cruz Curtis Dalton Daniels Davies Davis Day Dean Delgado Dempsey
Desai Diaz Dietrich Dixon Douglas Doyle Dubois Duncan Dunn Eaton Edwards Eklund Elliott Ellis Engel Eriksen Estrada
Evans Fabre Falk Farrell Ferguson Ferreira Fields Fischer Fisher Fleming Fontaine Ford Forster Foster Fowler Fox Franco
Fraser Freeman Frost Fuchs Gallagher Garcia Gardner Garner Gauthier Gibson Gilbert Gomez Goodwin Gordon Grant Graves
Gray Greco Green Griffin Gruber Gupta Haas Hale Hall Hamilton Hamm Hansen Harding Harper Harris Harrison Hart Hartley
Harvey Hashimoto Hawkins Hayes Heller Henderson Hernandez Herrera Hicks Hill Hoffman Holland Holm Holmes Hopkins Horvath
Howard Howell Hudson Hughes Hunt Hunter Hussain Ibrahim Iversen Jackson Jacobs James Jansen Jenkins Jennings Jensen
Johnson Johnston Jones Jordan Jovanovic Kane Kapoor Keller Kelly Kemp Kennedy Khan Kim King Klein Knight Kovacs Kowalski
Kramer Kruger Kumar Lambert Lane Lang Larsen Laurent Lawson Lee Lehmann Lennox Leroy Lewis Lincoln Lindgren Little
Lombardi Long Lopez Lund Lynch Mackay Maier Maldonado Marino Marsh Marshall Martens Martin Martinez Mason Matthews Mbeki
McCoy McDonald Mehta Meier Mendes Mercer Meyer Miller Mills Mitchell Molina Monroe Moore Morales Moreau Moretti Morgan
Morris Morrison Moss Muller Murphy Murray Myers Nakamura Nash Navarro Nelson Neumann Newton Nguyen Nichols Nilsson Nolan
Novak Nunez Obi Okafor Oliveira Olsen Ortega Osborne Owen Owens Ozturk Page Paget Palmer Parker Parks Patel Patterson
Pavlov Payne Pearson Pereira Perez Perkins Perry Peters Peterson Petrov Phillips Pierce Pinto Poole Pope Popescu Porter
Powell Prescott Price Quinn Ramirez Ramos Randall Rao Ray Reed Reid Reyes Reynolds Ribeiro Rice Rich Richardson Richter
Riley Rivera Roberts Robertson Robinson Rodriguez Rogers Rojas Romano Rose Ross Rossi Roux Rowe Russell Russo Ryan
Salazar Sanchez Sanders Santos Sato Sauer Schmidt Schneider Schwartz Scott Serrano Shah Sharma Shaw Shelton Silva
Simmons Simpson Singh Slater Smith Snyder Sokolov Soto Spencer Stanley Stein Stephens Sterling Stevens Stewart Stone
Strauss Sullivan Suzuki Swan Takeda Tanaka Taylor Thomas Thompson Thorne Torres Tran Tucker Turner Ulrich Underwood
Vargas Vasquez Vaughan Vega Vogel Volkov Wade Wagner Walker Wallace Walsh Ward Warren Washington Watanabe Waters Watson
Webb Weber Weiss Wells West Wheeler White Williams Willis Wilson Winter Wolf Wong Wood Woods Wright Yamada Yilmaz Young
Zhang Ziegler Zimmer
""")
# Further surnames are composed of a beginning and an ending.
BEGINNINGS = split_words("""
Al Ash Bar Bel Ber Bran Bur Cal Car Chal Col Cor Cran Dal Den Dor Dun El Fal Far Fen Gal Gar Glen Gor Hal Har Hol Hor
Kel Ken Kir Lan Lar Lin Lor Mal Mar Mel Mon Mor Nor Or Pel Per Pol Quar Ran Ros Sal San Sel Sher Sol Stan Tal Tar Thor
Tor Ul Val Var Ver Wal War Wel Win Wor Yar Zan
""")
ENDINGS = split_words("""
ado aga ani anti ard arro atti aux beck berg bert by cott croft dale dano den dorf elli endo enko ero escu etti feld
field ford gate ham hardt heim holt ich ier ijk ilde ina ingham insky ison kamp kin land ley lin lova man mann mark mond
more mott nor ock oda off olo ona ora oso oth ov ridge roft sen shaw skog son stad stein stone sworth tano thal ton
tora ucci ulo unga vale vich ville wald ward well wick win wood worth zetti zin
""")

# {name} paid {money} on {date}: wordings of the sentence. A value may stand in any place.
TRAINING_WORDINGS = (
    "{name} paid {money} on {date}.",
    "On {date}, {name} paid {money}.",
    "{money} was received from {name} on {date}.",
    "We received {money} from {name} on {date}.",
    "{name} owes {money}, due {date}.",
    "Invoice of {date}: {name}, {money}.",
    "The amount of {money} was transferred to {name} on {date}.",
    "Please refund {money} to {name} by {date}.",
    "A payment of {money} by {name} arrived on {date}.",
    "{date}: {name} was charged {money}.",
    "On {date} an amount of {money} was credited to the account of {name}.",
    "{name} donated {money} to the school on {date}.",
    "The rent of {name}, {money}, was settled on {date}.",
    "Dated {date}, the cheque for {money} is made out to {name}.",
    "Our customer {name} ordered goods for {money} on {date}.",
    "{name} withdrew {money} from the bank on {date}.",
    "The contract with {name} of {date} is worth {money}.",
    "Salary for {name}: {money}, paid out {date}.",
    "{money} to be collected from {name} before {date}.",
    "As of {date}, {name} has a balance of {money}.",
    "It was {date} when {name} sent us {money}.",
    "Ticket sold to {name} for {money}, valid from {date}.",
    "The bill for {money} went out to {name} on {date}.",
    "{name} (member since {date}) pays a fee of {money}.",
)
DEVELOPMENT_WORDINGS = (
    "{name} won {money} in the lottery on {date}.",
    "Reminder for {name}: {money} are outstanding since {date}.",
    "On {date} we lent {money} to {name}.",
    "The repair cost {name} {money} and was finished on {date}.",
    "Deposit of {money}, {date}, made by {name}.",
    "For {money}, {name} bought a bicycle on {date}.",
    "Insurance paid out {money} on {date}; the holder is {name}.",
    "{date} is the day on which {name} spent {money}.",
)
TEST_WORDINGS = (
    "{name} booked a flight for {money}, leaving on {date}.",
    "A fine of {money} was imposed on {name} on {date}.",
    "Since {date}, {name} has saved {money}.",
    "The grant of {money} goes to {name} and starts on {date}.",
    "Received with thanks, {date}: {money} from {name}.",
    "{name} sold the car on {date} and got {money}.",
    "On {date} the auction ended: {money}, bid by {name}.",
    "Expenses of {name}, handed in {date}, come to {money}.",
)

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
# Forms of a date; {th} is the ending of an ordinal number.
DATE_FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day}{th} {month} {year}",
    "{month} {day}{th}, {year}",
    "the {day}{th} of {month} {year}",
    "{day} {short} {year}",
    "{short} {day}, {year}",
    "{day}.{number}.{year}",
)
# Forms of an amount with its currency; {amount} has a decimal point, with or without commas after thousands.
MONEY_FORMS = {
    "USD": ("${amount}", "{amount} dollars", "USD {amount}", "{amount} USD"),
    "EUR": ("€{amount}", "{amount} euros", "EUR {amount}", "{amount} EUR"),
    "GBP": ("£{amount}", "{amount} pounds", "GBP {amount}", "{amount} GBP"),
    "CHF": ("{amount} francs", "CHF {amount}", "{amount} CHF"),
    "PLN": ("{amount} zloty", "PLN {amount}", "{amount} PLN"),
    "INR": ("₹{amount}", "{amount} rupees", "INR {amount}", "{amount} INR"),
}
